"""Reading picture files, and why one cannot be read."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)

_MOST_THIN = 200  # times as long as wide: resized to the model's input, longer ones take gigabytes


class UnreadableImage(Exception):
    """A file that is no picture, or not a whole one; the message says why, without the name of the file."""


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """A picture in RGB, turned as its EXIF says.

    16 bits a channel become 8; transparency is left out; of an animation the first frame is taken.

    Raises:
        UnreadableImage: it cannot be read in full.
    """
    file = Path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise UnreadableImage("is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file")
        if not status.st_size:
            raise UnreadableImage("is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                if max(image.size) > _MOST_THIN * min(image.size):
                    width, height = image.size
                    raise UnreadableImage(f"is {width} x {height} pixels: too thin for a square of it")
                return _as_rgb(ImageOps.exif_transpose(image))
    except (Image.UnidentifiedImageError, ImportError):  # see data/image_size.py
        raise UnreadableImage("is no picture that Pillow reads") from None
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(f"cannot be read: {reason}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):  # Pillow would clip at 255
        pixels = np.asarray(image).astype(np.int64)
        if image.mode != "I" or pixels.max(initial=0) > 255:
            pixels = pixels >> 8
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
