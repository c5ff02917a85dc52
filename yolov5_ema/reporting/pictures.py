"""Pictures inside the page: sample images with their boxes, and what YOLOv5 drew, as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from yolov5_ema.data.image_files import read_image
from yolov5_ema.reporting.charts import COLOURS
from yolov5_ema.reporting.measuring import Sample

MOST_BYTES = 60_000
"""Of one picture's JPEG."""

_LONG_SIDE = 640
_SMALLEST_SIDE = 480
"""Smaller images are enlarged, or boxes around tiny objects would hide them."""
_LABELLED = 14
"""More detections than this are drawn without their names."""
_LONGEST_NAME = 16


def draw_sample(sample: Sample, names: Sequence[str]) -> str | None:
    """An image with its true boxes (white, dashed) and its detections (a colour a class), as a data URI.

    Returns:
        None if the image can no longer be read.
    """
    pixels = read_image(sample.image).pixels
    if pixels is None:
        return None
    image = Image.fromarray(pixels[:, :, ::-1])
    scale = min(_LONG_SIDE / max(image.size), max(1.0, _SMALLEST_SIDE / max(image.size)))
    image = image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for entry in sample.truth:
        _dashed(draw, _corners(entry[1:5], scale, margin=2))
    for entry in reversed(sample.found):  # the best on top
        _detection(draw, entry, scale, names, labelled=len(sample.found) <= _LABELLED)
    return as_jpeg(image)


def colour_of(index: int) -> str:
    """Of a class in the pictures and in the legend beside them."""
    return COLOURS[index % len(COLOURS)]


def embedded_picture(file: Path) -> str | None:
    """A picture that lies in a run's folder, as a data URI; None if it cannot be read."""
    pixels = read_image(file).pixels
    if pixels is None:
        return None
    image = Image.fromarray(pixels[:, :, ::-1])
    image.thumbnail((1400, 1400))
    return as_jpeg(image, most_bytes=4 * MOST_BYTES)


def as_jpeg(image: Any, most_bytes: int = MOST_BYTES) -> str:
    """A data URI of an image, its quality and then its size lowered until it is small enough."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    while True:
        for quality in (85, 75, 65, 55, 45):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality, optimize=True)
            if stream.tell() <= most_bytes:
                return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
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
