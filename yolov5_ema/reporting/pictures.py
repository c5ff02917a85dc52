"""Pictures inside the page: sample images with their boxes, and what YOLOv5 drew, as JPEGs of bounded size."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from yolov5_ema.data.image_files import read_image
from yolov5_ema.errors import UserError
from yolov5_ema.reporting.charts import COLOURS

MOST_BYTES = 60_000
"""Of one picture's JPEG."""

_LONG_SIDE = 640
_SMALLEST_SIDE = 480
"""Smaller images are enlarged, or boxes around tiny objects would hide them."""
_LABELLED = 14
"""More detections than this are drawn without their names."""
_LONGEST_NAME = 16
_MOST_FILE, _MOST_PIXELS = 64 * 2**20, 50_000_000


def draw_sample(
    file: Path, truth: Sequence[Sequence[float]], found: Sequence[Sequence[float]], names: Sequence[str]
) -> str:
    """An image with its true boxes (white, dashed) and its detections (a colour a class), as JPEG in base64.

    Args:
        file: the image.
        truth: a list (class, left, top, width, height) an object, pixels.
        found: a list (class, left, top, width, height, confidence) a detection, the best first.
        names: of the classes.

    Returns:
        "" if the image cannot be read.
    """
    pixels = read_image(file).pixels
    if pixels is None:
        return ""
    image = Image.fromarray(pixels[:, :, ::-1])
    scale = min(_LONG_SIDE / max(image.size), max(1.0, _SMALLEST_SIDE / max(image.size)))
    image = image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for entry in truth:
        _dashed(draw, _corners(entry[1:5], scale, margin=2))
    for entry in reversed(found):  # the best on top
        _detection(draw, entry, scale, names, labelled=len(found) <= _LABELLED)
    return as_jpeg(image)


def uri_of(picture: str) -> str:
    """A JPEG in base64 as the page takes it."""
    return f"data:image/jpeg;base64,{picture}"


def checked_picture(value: Any, where: str) -> str:
    """A picture that `draw_sample` has drawn, read again from a file; it is decoded to see that it is one.

    Raises:
        UserError: it is no small JPEG.
    """
    if value != "" and not _is_small_jpeg(value):
        raise UserError(f"{where} is no picture that a report has kept")
    return str(value)


def _is_small_jpeg(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 2 * MOST_BYTES:
        return False
    try:
        raw = base64.b64decode(value, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(raw), formats=["JPEG"]) as image:
                if max(image.size) > _LONG_SIDE or len(raw) > MOST_BYTES:
                    return False
                image.load()
    except (binascii.Error, ValueError, OSError, SyntaxError, ImportError, Warning):  # see data/image_size.py
        return False
    return True


def colour_of(index: int) -> str:
    """Of a class in the pictures and in the legend beside them."""
    return COLOURS[index % len(COLOURS)]


def embedded_picture(file: Path) -> str | None:
    """A picture of a run's folder, as JPEG in base64; None if it cannot be read, or is too large to be one."""
    if not _is_drawn(file):
        return None
    pixels = read_image(file).pixels
    if pixels is None:
        return None
    image = Image.fromarray(pixels[:, :, ::-1])
    image.thumbnail((1400, 1400))
    return as_jpeg(image, most_bytes=4 * MOST_BYTES)


def _is_drawn(file: Path) -> bool:
    """Whether a file is as large as a picture of YOLOv5's may be, in bytes and, by its header, in pixels."""
    try:
        if file.stat().st_size > _MOST_FILE:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=["PNG", "JPEG"]) as image:
                return image.size[0] * image.size[1] <= _MOST_PIXELS
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError):
        return False


def as_jpeg(image: Any, most_bytes: int = MOST_BYTES) -> str:
    """An image as JPEG in base64, its quality and then its size lowered until it is small enough."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    while True:
        for quality in (85, 75, 65, 55, 45):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality, optimize=True)
            if stream.tell() <= most_bytes:
                return base64.b64encode(stream.getvalue()).decode()
        image = image.resize([max(side * 3 // 4, 1) for side in image.size])


def _detection(draw: Any, entry: Sequence[float], scale: float, names: Sequence[str], labelled: bool) -> None:
    cls, score = int(entry[0]), entry[5]
    colour = colour_of(cls)
    corners = _corners(entry[1:5], scale)
    draw.rectangle(corners, outline=colour, width=2)
    if not labelled:
        return
    name = names[cls] if cls < len(names) else str(cls)
    text = f"{name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + '…'} {score:.2f}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=_font())
    width, height = right - left + 6, bottom - top + 6
    x = min(max(corners[0], 0), max(draw.im.size[0] - width, 0))
    y = corners[1] - height if corners[1] >= height else min(corners[3], draw.im.size[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, fill="white", font=_font())


def _corners(box: Sequence[float], scale: float, margin: float = 0) -> tuple[float, float, float, float]:
    left, top, width, height = (value * scale for value in box)
    return left - margin, top - margin, left + max(width, 1) + margin, top + max(height, 1) + margin


def _dashed(draw: Any, corners: tuple[float, float, float, float], dash: float = 5) -> None:
    """White dashes on black, to be seen on any ground."""
    left, top, right, bottom = corners
    draw.rectangle(corners, outline="black", width=1)
    for start, end, fixed, is_level in (
        (left, right, top, True),
        (left, right, bottom, True),
        (top, bottom, left, False),
        (top, bottom, right, False),
    ):
        at = start
        while at < end:
            stop = min(at + dash, end)
            line = ((at, fixed), (stop, fixed)) if is_level else ((fixed, at), (fixed, stop))
            draw.line(line, fill="white", width=1)
            at += 2 * dash


@lru_cache(maxsize=1)
def _font() -> Any:
    """The one that comes with matplotlib: Pillow's own has no size before version 10.1."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)
