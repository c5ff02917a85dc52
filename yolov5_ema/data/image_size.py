"""Read the width and height of an image file from its header."""

from __future__ import annotations

import io
import os
import warnings
from typing import NamedTuple

from PIL import Image

from yolov5_ema.data.listing import IMAGE_SUFFIXES
from yolov5_ema.errors import UserError
from yolov5_ema.files import open_regular, reading_from

# ImportError: if ultralytics is imported, Pillow looks for a plugin before it gives up
BROKEN = (OSError, SyntaxError, ValueError, ImportError)
"""What Pillow raises for a file that is not a whole image."""
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_HEAD = 4096  # bytes; most JPEGs give their size within them
_LEAST_SIDE = 10
_END_OF_JPEG = b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class ImageInfo(NamedTuple):
    """What a header says.

    Attributes:
        width, height: in pixels, as stored (an EXIF orientation is ignored).
        whole: False for a JPEG without an end marker that can still be decoded. YOLOv5 rewrites such a file in
            place.
    """

    width: int
    height: int
    whole: bool


def read_image_info(file: str | os.PathLike[str]) -> ImageInfo:
    """The size of an image file.

    Raises:
        UserError: it cannot be read, is not an image, or is cut off.
    """
    with reading_from(file), open_regular(file) as stream:
        descriptor = stream.fileno()
        head = os.read(descriptor, _HEAD)
        if not head.startswith(b"\xff\xd8"):
            return _by_pillow(file, file)
        os.lseek(descriptor, -min(2, len(head)), os.SEEK_END)
        tail = os.read(descriptor, 2)
    size = _jpeg_size(head)
    if size is None or tail != _END_OF_JPEG:
        return _by_pillow(file, file, decode=tail != _END_OF_JPEG)
    return ImageInfo(*size, True)


def displayed_size(file: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels as `cv2.imread` returns an image, turned as its EXIF data says, without decoding it.

    Raises:
        UserError: it is not an image that Pillow can read.
    """
    try:
        with open_regular(file) as stream, Image.open(stream) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}") from error
    return (height, width) if turned else (width, height)


def reason_left_out(file: str | os.PathLike[str]) -> str:
    """Why YOLOv5 leaves an image out, in training and in ``val``; "" if it uses the image.

    YOLOv5 requires a complete file, of a format that it reads, and at least 10 pixels on each side.
    """
    try:
        with warnings.catch_warnings(), open_regular(file) as stream:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as image:
                form, (width, height) = (image.format or "").lower(), image.size
                image.verify()
        if form in ("jpeg", "jpg"):
            read_image_info(file)  # decodes a JPEG without an end marker
    except UserError as error:
        return str(error).removeprefix(str(file)).strip()
    except Exception as error:  # Pillow raises many types on damaged files
        return f"cannot be read as an image: {error}"
    # YOLOv5 looks up the name of the format in its list of suffixes
    if f".{form}" not in IMAGE_SUFFIXES:
        return f"is an image of the format {form}, which YOLOv5 does not accept"
    if min(width, height) < _LEAST_SIDE:
        return f"is {width} x {height} pixels; YOLOv5 needs at least {_LEAST_SIDE} on each side"
    return ""


def image_info_of(content: bytes, name: object) -> ImageInfo:
    """The size of an image in memory, which messages call ``name``."""
    if content.startswith(b"\xff\xd8"):
        size, ends = _jpeg_size(content[: 16 * _HEAD]), content.endswith(_END_OF_JPEG)
        if size is not None and ends:
            return ImageInfo(*size, True)
        return _by_pillow(io.BytesIO(content), name, decode=not ends)
    return _by_pillow(io.BytesIO(content), name)


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Walk the segments up to the frame header; None if it is beyond ``head``, or if anything is unusual."""
    at, length = 2, len(head)
    while at + 9 <= length:
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker in _START_OF_FRAME:
            height, width = head[at + 5] << 8 | head[at + 6], head[at + 7] << 8 | head[at + 8]
            return (width, height) if width and height else None
        if not (0xC0 <= marker <= 0xFE) or 0xD0 <= marker <= 0xDA:
            return None
        at += 2 + (head[at + 2] << 8 | head[at + 3])
    return None


def _by_pillow(file: str | os.PathLike[str] | io.BytesIO, name: object, decode: bool = False) -> ImageInfo:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                width, height = image.size
                if decode:
                    image.load()
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {error}") from error
    except BROKEN as error:
        what = "is cut off" if "truncated" in str(error) else "is not a readable image"
        raise UserError(f"{name} {what}") from error
    return ImageInfo(width, height, not decode)
