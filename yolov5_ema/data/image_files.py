"""Pixels of image files as YOLOv5 reads them, and what is wrong with those that it cannot read."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from yolov5_ema.texts import first_line

_START_OF_JPEG = b"\xff\xd8"
_END_OF_JPEG = b"\xff\xd9"
# YOLOv5 6.1 and 6.2 put a function of their own in the place of `cv2.imread`, to which a cut off JPEG is none at all
_imread = getattr(cv2, "_native", cv2).imread
_PIXEL_LIMIT = "CV_IO_MAX_IMAGE_"  # stands in what OpenCV says of a picture that is too large for it


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
    problem = problem_before_reading(path)
    if problem is not None:
        return ImageFile(None, problem)
    try:
        pixels = _imread(str(path))
    except (cv2.error, MemoryError) as error:  # more pixels than OpenCV, or this machine, takes
        return ImageFile(None, _reason(error))
    if pixels is None:
        return ImageFile(None, "is no image that OpenCV reads, or a damaged one")
    if _lacks_its_end_mark(path) and _is_cut_off(path):
        return ImageFile(pixels, "is cut off; what lies beyond the cut was taken as grey")
    return ImageFile(pixels, None)


def problem_before_reading(file: str | os.PathLike[str]) -> str | None:
    """Why there is no use in giving a file, an image or a video, to OpenCV; None where there may be."""
    try:
        os.fspath(file).encode()
    except UnicodeEncodeError:  # OpenCV 5.0 does not survive such a name
        return "has a name that is not UTF-8, which OpenCV cannot open; rename it"
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            return "is a folder"
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            return "is no regular file"
        with open(file, "rb"):
            pass
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return None if status.st_size else "is empty"


def _reason(error: BaseException) -> str:
    text = first_line(getattr(error, "err", "") or error)
    if _PIXEL_LIMIT in text:
        return f"has more pixels than OpenCV reads ({text})"
    return f"cannot be read: {text}"


def _lacks_its_end_mark(path: Path) -> bool:
    """Whether a file is a JPEG that does not end as one; what is appended to a whole one has that effect too."""
    with path.open("rb") as stream:
        head = stream.read(2)
        stream.seek(-2, os.SEEK_END)
        return head == _START_OF_JPEG and stream.read(2) != _END_OF_JPEG


def _is_cut_off(path: Path) -> bool:
    """Whether a JPEG ends before its picture does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
    except (OSError, SyntaxError, ImportError):  # see image_size.py
        return True
    except (ValueError, Image.DecompressionBombError):
        return False
    return False
