"""Pixels of image files as YOLOv5 reads them, and what is wrong with those that it cannot read."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

_START_OF_JPEG = b"\xff\xd8"
_END_OF_JPEG = b"\xff\xd9"


class ImageFile(NamedTuple):
    """What came of reading one file.

    Attributes:
        pixels: uint8 of shape (H, W, 3) in BGR, turned as its EXIF says; None if there are none to be had.
        problem: what is wrong with the file, to be shown to people; None if nothing is. A JPEG that is cut off has
            both: what lies beyond the cut is grey.
    """

    pixels: np.ndarray | None
    problem: str | None


def read_image(file: str | os.PathLike[str]) -> ImageFile:
    """Read an image with OpenCV, as YOLOv5's ``detect`` does, and say why where that cannot be.

    16 bits a channel become 8, CMYK becomes BGR, transparency is left out. Nothing is raised for a bad file.
    """
    path = Path(file)
    try:
        with path.open("rb") as stream:
            head = stream.read(2)
            stream.seek(0, os.SEEK_END)
            size = stream.tell()
            stream.seek(max(size - 2, 0))
            tail = stream.read(2)
    except OSError as error:
        return ImageFile(None, f"cannot be read: {error.strerror or error}")
    if not size:
        return ImageFile(None, "is empty")
    try:
        pixels = cv2.imread(str(path))
    except (cv2.error, MemoryError) as error:  # more pixels than OpenCV, or this machine, takes
        return ImageFile(None, f"cannot be read: {_reason(error)}")
    if pixels is None:
        return ImageFile(None, "is no image that OpenCV reads, or a damaged one")
    if head == _START_OF_JPEG and tail != _END_OF_JPEG and _is_cut_off(path):
        return ImageFile(pixels, "is cut off; what lies beyond the cut was taken as grey")
    return ImageFile(pixels, None)


def _reason(error: BaseException) -> str:
    return (str(getattr(error, "err", "")) or str(error) or type(error).__name__).strip().splitlines()[0]


def _is_cut_off(path: Path) -> bool:
    """Whether a JPEG ends before its picture does; its last bytes alone may be something that was appended."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
    except (OSError, SyntaxError):
        return True
    except (ValueError, Image.DecompressionBombError):
        return False
    return False
