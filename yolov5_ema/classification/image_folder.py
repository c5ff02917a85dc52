"""Images in one folder for each class, as in torchvision's ImageFolder: ``train/cat/1.jpg``, ``val/cat/2.jpg``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from yolov5_ema.classification.images import SUFFIXES
from yolov5_ema.errors import UserError
from yolov5_ema.texts import listed

VAL_FOLDERS = ("val", "valid", "validation", "test")


class Listing(NamedTuple):
    """The files of a split.

    Attributes:
        names: names of the classes, sorted, so that the indices are those of torchvision.
        files: files of all classes, sorted within each class.
        labels: the class of each file.
    """

    names: list[str]
    files: list[str]
    labels: list[int]


def split_folder(root: Path, split: str) -> Path:
    """Find the folder of ``train``, or of ``val`` (else ``valid``, ``validation`` or ``test``).

    Raises:
        UserError: there is no such folder; the message lists the folders that exist.
    """
    wanted = VAL_FOLDERS if split == "val" else (split,)
    found = next((root / name for name in wanted if (root / name).is_dir()), None)
    if found is not None:
        return found
    if not root.is_dir():
        raise UserError(f"{root}: no such folder" if not root.exists() else f"{root} is not a folder")
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:8]
    raise UserError(
        f"{root} has no folder {' or '.join(wanted)}; it must hold {root.name}/train/CLASS/IMAGE and "
        f"{root.name}/val/CLASS/IMAGE. Folders there: {', '.join(there) or 'none'}"
    )


def list_images(folder: Path) -> Listing:
    """List all images of a split by their file names. Unreadable images are only noticed when they are read.

    Raises:
        UserError: there are no folders of classes, or some hold no images; the message names them.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no folders of classes; it must hold {folder.name}/CLASS/IMAGE")
    files: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(names):
        found = sorted(_pictures(folder / name))
        files += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if empty:
        raise UserError(
            f"{folder}: no images in the folders of {listed(map(repr, empty), 10)}. Remove empty folders, or "
            f"fill them; names of images end with {', '.join(sorted(SUFFIXES))}"
        )
    return Listing(names, files, labels)


def check_same_classes(train: Listing, val: Listing, root: Path) -> None:
    """Raise a UserError, with their names, if one split has classes that the other lacks."""
    only_train = sorted(set(train.names) - set(val.names))
    only_val = sorted(set(val.names) - set(train.names))
    if only_train or only_val:
        parts = [f"only in train: {listed(map(repr, only_train), 10)}"] if only_train else []
        parts += [f"only in val: {listed(map(repr, only_val), 10)}"] if only_val else []
        raise UserError(f"{root}: train and val do not have the same classes; {'; '.join(parts)}")


def _pictures(folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(place, name)
            for name in files
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return found
