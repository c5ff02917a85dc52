"""Read the pixels of image files as YOLOv5 does, and say what is wrong with files that it cannot read."""

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
# YOLOv5 6.1 and 6.2 replace `cv2.imread` with a function that reads nothing from a truncated JPEG
_imread = getattr(cv2, "_native", cv2).imread
_PIXEL_LIMIT = "CV_IO_MAX_IMAGE_"  # part of OpenCV's message about an image that is too large


class ImageFile(NamedTuple):
    """The result of reading one file.

    Attributes:
        pixels: uint8 of shape (H, W, 3) in BGR, rotated as its EXIF data says; None if they cannot be read.
        problem: what is wrong with the file, as a message; None if nothing is. A JPEG that is cut off has pixels and
            a problem: the missing part is grey.
    """

    pixels: np.ndarray | None
    problem: str | None


def read_image(file: str | os.PathLike[str]) -> ImageFile:
    """Read an image with OpenCV, as YOLOv5's ``detect`` does, or say why it cannot be read.

    16 bits per channel become 8, CMYK becomes BGR, transparency is dropped. A bad file raises nothing.
    """
    path = Path(file)
    problem = problem_before_reading(path)
    if problem is not None:
        return ImageFile(None, problem)
    try:
        pixels = _imread(str(path))
    except (cv2.error, MemoryError) as error:  # more pixels than OpenCV or the memory can hold
        return ImageFile(None, _reason(error))
    if pixels is None:
        return ImageFile(None, "is not an image that OpenCV reads, or it is damaged")
    if _has_no_end_marker(path) and _is_cut_off(path):
        return ImageFile(pixels, "is cut off; the missing part was read as grey")
    return ImageFile(pixels, None)


def problem_before_reading(file: str | os.PathLike[str]) -> str | None:
    """Why OpenCV cannot open an image or video file, as far as can be told without reading it; else None."""
    try:
        os.fspath(file).encode()
    except UnicodeEncodeError:  # OpenCV 5.0 crashes on such a name
        return "has a name that is not UTF-8, which OpenCV cannot open; rename it"
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            return "is a folder"
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            return "is not a regular file"
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


def _has_no_end_marker(path: Path) -> bool:
    """Whether a JPEG has no end marker at its end; bytes appended to a complete JPEG also have this effect."""
    with path.open("rb") as stream:
        head = stream.read(2)
        stream.seek(-2, os.SEEK_END)
        return head == _START_OF_JPEG and stream.read(2) != _END_OF_JPEG


def _is_cut_off(path: Path) -> bool:
    """Whether a JPEG ends before all of its image data."""
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
