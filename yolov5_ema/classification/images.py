"""Reading image files, with the reason if one cannot be read."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Not data.listing.IMAGE_SUFFIXES, which are the formats that YOLOv5 reads with OpenCV: here Pillow reads the images, so
# these are common formats of Pillow. It reads PPM and the first frame of a GIF, but no DNG.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})

_MOST_THIN = 200  # the longer side over the shorter: above this, resizing to the model's input takes gigabytes


class UnreadableImage(Exception):
    """A file is not a complete image; the message gives the reason without the name of the file."""


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image in RGB, rotated as its EXIF data say.

    16 bits per channel become 8, transparency is dropped, and only the first frame of an animation is read.

    Raises:
        UnreadableImage: the image cannot be read completely.
    """
    file = Path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise UnreadableImage("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        if not status.st_size:
            raise UnreadableImage("is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                if max(image.size) > _MOST_THIN * min(image.size):
                    width, height = image.size
                    raise UnreadableImage(f"is {width} x {height} pixels: too thin to be made square")
                return _as_rgb(ImageOps.exif_transpose(image))
    except (Image.UnidentifiedImageError, ImportError):  # see data/image_size.py
        raise UnreadableImage("is not an image that Pillow can read") from None
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(f"cannot be read: {reason}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):  # Pillow's conversion would clip at 255
        pixels = np.asarray(image).astype(np.int64)
        if image.mode != "I" or pixels.max(initial=0) > 255:
            pixels = pixels >> 8
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
