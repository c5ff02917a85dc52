"""The suffixes of images and videos, and the files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

from yolov5_ema.errors import UserError

# what the newest YOLOv5 reads; upstream/loaders.py knows what other releases read
IMAGE_SUFFIXES = frozenset({".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".wmv"})
_MOST_FOLDERS = 100_000


def has_suffix(file: str, suffixes: frozenset[str]) -> bool:
    """Whether a path has one of these suffixes; case does not matter.

    Example:
        >>> has_suffix("set/a.JPG", IMAGE_SUFFIXES), has_suffix("set/a.jpg.txt", IMAGE_SUFFIXES)
        (True, False)
    """
    return f".{file.rpartition('.')[2].lower()}" in suffixes


def folders_below(top: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and all folders below it, including linked ones, each with the names in it.

    Hidden folders are skipped, as ``glob`` does, and so are links that form a circle.

    Raises:
        UserError: there are more folders than a data set can have.
    """
    above = {top: frozenset([os.path.realpath(top)])}
    for count, (folder, folders, files) in enumerate(os.walk(top, followlinks=True)):
        if count > _MOST_FOLDERS:
            raise UserError(f"{top} has more than {_MOST_FOLDERS:,} folders in it; there may be links between them")
        real = above.pop(folder)
        yield folder, [*folders, *files]
        kept = {name: os.path.realpath(os.path.join(folder, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, place in kept.items() if place not in real]
        above.update({os.path.join(folder, name): real | {kept[name]} for name in folders})


def files_below(top: str) -> Iterator[str]:
    """The files that ``glob`` finds for ``TOP/**/*.*``; circular links are not followed."""
    for folder, names in folders_below(top):
        yield from (os.path.join(folder, name) for name in names if "." in name and not name.startswith("."))
