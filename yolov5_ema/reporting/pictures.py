"""Pictures inside the page: sample images with boxes, and the plots of trainings, as JPEGs of limited size."""

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
"""The largest size of one JPEG in bytes."""

_LONG_SIDE = 640
_SMALLEST_SIDE = 480
"""Smaller images are enlarged, because boxes would otherwise hide tiny objects."""
_LABELLED = 14
"""With more detections than this, they are drawn without class names."""
_LONGEST_NAME = 16
_MOST_FILE, _MOST_PIXELS = 64 * 2**20, 50_000_000


def draw_sample(
    file: Path, truth: Sequence[Sequence[float]], found: Sequence[Sequence[float]], names: Sequence[str]
) -> str:
    """An image with its true boxes (white, dashed) and its detections (one colour per class), as JPEG in base64.

    Args:
        file: the image.
        truth: for each object a list (class, left, top, width, height), in pixels.
        found: for each detection a list (class, left, top, width, height, confidence), the best first.
        names: names of the classes.

    Returns:
        The JPEG in base64, or "" if the image cannot be read.
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
    # the best is drawn last, on top
    for entry in reversed(found):
        _detection(draw, entry, scale, names, labelled=len(found) <= _LABELLED)
    return as_jpeg(image)


def uri_of(picture: str) -> str:
    """A JPEG in base64 as a URL for the page."""
    return f"data:image/jpeg;base64,{picture}"


def checked_picture(value: Any, where: str) -> str:
    """A picture drawn by `draw_sample` and read from a file, after decoding it as a check.

    Raises:
        UserError: it is not a small JPEG.
    """
    if value != "" and not _is_small_jpeg(value):
        raise UserError(f"{where} is not a picture that a report has kept")
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
    """The colour of a class in the pictures and in their legend."""
    return COLOURS[index % len(COLOURS)]


def embedded_picture(file: Path) -> str | None:
    """A picture in a run's folder, as JPEG in base64; None if it cannot be read or is too large."""
    if not _is_drawn(file):
        return None
    pixels = read_image(file).pixels
    if pixels is None:
        return None
    image = Image.fromarray(pixels[:, :, ::-1])
    image.thumbnail((1400, 1400))
    return as_jpeg(image, most_bytes=4 * MOST_BYTES)


def _is_drawn(file: Path) -> bool:
    """Whether a picture is within the size limits in bytes and, according to its header, in pixels."""
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
    """An image as JPEG in base64. First its quality, then its size is reduced until it is small enough."""
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
    """Draw white dashes on a black line, visible on any background."""
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
    """The font that matplotlib ships. Pillow's own font cannot be scaled before version 10.1."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)
