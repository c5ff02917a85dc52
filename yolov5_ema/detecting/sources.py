"""Find the images for ``yolov5-ema predict --source``."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yolov5_ema.data.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from yolov5_ema.errors import UserError
from yolov5_ema.reading import read_text


@dataclass(frozen=True)
class Source:
    """Images in the order in which they are reported.

    Attributes:
        images: their paths as the user gave them, without duplicates.
        repeated: the number of lines of a list that repeat an image and are left out.
    """

    images: list[str]
    repeated: int = 0

    def files(self) -> list[str]:
        """The absolute paths of the images, so that a process with another working directory finds them."""
        return [os.path.abspath(image) for image in self.images]


def find_images(source: str) -> Source:
    """Find the images of a folder and its subfolders, a glob, a list, or a single image.

    Hidden files and folders are skipped, as in YOLOv5. A list (``.txt``) has one path in each line, relative to the
    working directory or, after ``./``, to the list's folder, as in YOLOv5's data sets. Its images need not exist.

    Raises:
        UserError: there are no images, or a list names a file that is not an image.
    """
    path = Path(source)
    if path.is_dir():
        inside = os.path.join(glob.escape(source), "**", "*.*")
        found = Source(_images_among(glob.glob(inside, recursive=True)))
    elif path.is_file() and path.suffix.lower() == ".txt":
        found = _of_list(path)
    elif path.is_file():
        found = Source(_images_among([source]))
    elif any(character in source for character in "*?["):
        found = Source(_images_among(glob.glob(source, recursive=True)))
    elif source.isdigit() or "://" in source:
        raise UserError(f"--source {source}: predict reads files; for a webcam or an address: yolov5-ema detect")
    else:
        raise UserError(f"--source {source}: no such file or folder")
    if not found.images:
        hint = "; for videos: yolov5-ema detect" if _has_videos(source) else ""
        raise UserError(f"--source {source}: no images there; supported suffixes: {_known()}{hint}")
    _check_names(found.images, source)
    return found


def _has_videos(source: str) -> bool:
    inside = os.path.join(glob.escape(source), "**", "*.*") if os.path.isdir(source) else source
    names = (source, *glob.iglob(inside, recursive=True))
    return any(os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and os.path.isfile(name) for name in names)


def _known() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _images_among(names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if _is_image(name) and os.path.isfile(name)})


def _of_list(file: Path) -> Source:
    try:
        lines = read_text(file, encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--source {file}: not a text in UTF-8 with one path in each line") from error
    except OSError as error:
        raise UserError(f"--source {file}: cannot be read: {error.strerror or error}") from error
    images: dict[str, str] = {}
    named = 0
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if not _is_image(name):
            raise UserError(f"{file}, line {number}: {name[:200]} is not an image; supported suffixes: {_known()}")
        if name.startswith("./"):
            name = str(file.parent / name[2:])
        named += 1
        images.setdefault(os.path.abspath(name), name)
    return Source(list(images.values()), named - len(images))


def _check_names(images: Iterable[str], source: str) -> None:
    for image in images:
        try:
            image.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"--source {source}: the name of {image!a} is not UTF-8; rename it") from None
