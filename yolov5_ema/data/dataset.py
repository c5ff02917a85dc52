"""YOLOv5's data YAMLs: where the images and labels of a split are."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov5_ema.class_names import fault_of_names
from yolov5_ema.data.text_rows import read_lines
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import ConfigError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = {".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Dataset:
    """A data YAML.

    Attributes:
        file: the YAML.
        root: folder that its splits are relative to.
        names: of the classes, in their order.
        content: the YAML as it stands.
    """

    file: Path
    root: Path
    names: tuple[str, ...]
    content: Mapping[str, Any]

    @property
    def splits(self) -> list[str]:
        """Those of train, val and test that the YAML names."""
        return [split for split in SPLITS if self.content.get(split)]

    def images(self, split: str) -> list[Path]:
        """The images of a split, sorted, each once.

        Raises:
            ConfigError: the YAML does not name the split, its place is missing, or no image is there.
        """
        entries = entries_of(self.content, split, self.file)
        if not entries:
            raise ConfigError(
                f"{self.file}: the key {split!r} is missing; it has {', '.join(self.splits) or 'no splits'}"
            )
        found: set[Path] = set()
        for entry in entries:
            found.update(_images_at(place_of(self.root, entry), self.file, split))
        if not found:
            raise ConfigError(f"{self.file}: no images for {split} in {', '.join(entries)}")
        return sorted(found)

    def extra_path(self, key: str, split: str) -> Path | None:
        """What an optional mapping from splits to places (such as ``coco_annotations``) says of a split.

        Raises:
            ConfigError: it names what is not there.
        """
        places = self.content.get(key)
        if not isinstance(places, Mapping) or not places.get(split):
            return None
        place = self.root / str(places[split])
        if not is_there(place):
            raise ConfigError(f"{self.file}: {key}, {split}: {str(place)[:1000]!r} is missing")
        return place


def load_dataset(file: Path, bases: Sequence[Path] = ()) -> Dataset:
    """Read a data YAML.

    Args:
        file: the YAML.
        bases: folders to which a relative ``path`` may be relative, before the YAML's own folder is tried;
            the working directory is always the first.

    Raises:
        ConfigError: it cannot be read, or names no classes.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: a data YAML must hold keys such as path, train, val, names")
    return Dataset(file, dataset_root(content, file, bases), _names(content, file), content)


def dataset_root(content: Mapping[str, Any], file: Path, bases: Sequence[Path] = ()) -> Path:
    """The folder that a data YAML's splits are relative to.

    A relative ``path`` is taken from the working directory, from ``bases`` or from the YAML's own folder: the
    first of these that holds a split, see `place_of`; the first of all if none does.
    """
    path = _home_written_out(content.get("path") or "", file)
    if path.is_absolute():
        return path
    candidates = [base / path for base in (Path(), *bases, file.resolve().parent)]
    first_entries = [_first(content[split]) for split in SPLITS if content.get(split)]
    for place in (Path.__truediv__, place_of):
        for candidate in candidates:
            if any(is_there(place(candidate, entry)) for entry in first_entries):
                return candidate
    return candidates[0]


def place_of(root: Path, entry: str) -> Path:
    """Where an entry of a split is.

    Roboflow writes ``../train/images`` for what lies in ``train/images`` beside the YAML: where such an entry leads
    nowhere, its ``../`` does not count. YOLOv5 does that from v7.0 on.
    """
    place = root / entry
    if entry.startswith("../") and not is_there(place) and is_there(root / entry[3:]):
        return root / entry[3:]
    return place


def _home_written_out(path: Any, file: Path) -> Path:
    if not isinstance(path, str) or "\0" in path:
        raise ConfigError(f"{file}: path must be a folder, not {reprlib.repr(path)}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{file}: path {path!r}: {error}") from error


def is_there(place: Path) -> bool:
    """Whether a place exists; one that no file system could hold, by its length or a NUL, does not."""
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def entries_of(content: Mapping[str, Any], split: str, file: Path) -> list[str]:
    """The folders, lists or images that a data YAML names for a split; empty if it does not name the split.

    Raises:
        ConfigError: they are no texts.
    """
    value = content.get(split)
    entries = (
        value if isinstance(value, (list, tuple)) else [value] if value is not None and value != "" else []
    )
    for entry in entries:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            raise ConfigError(
                f"{file}: {split} must name a folder of images, such as images/{split}, or a list of them, "
                f"not {reprlib.repr(entry)}"
            )
    return list(entries)


def class_names(content: Mapping[str, Any], file: Path) -> list[str] | None:
    """The names of a data YAML in the order of their classes; None if there is no such key.

    Raises:
        ConfigError: they are no list, or no mapping that counts from 0; or one of them is no name.
    """
    names = content.get("names")
    if names is None:
        return None
    if isinstance(names, Mapping):
        if not all(type(key) is int for key in names) or sorted(names) != list(range(len(names))):
            raise ConfigError(
                f"{file}: names must count its classes from 0 without a gap, not {reprlib.repr(list(names))}"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise ConfigError(f"{file}: names must be a list of class names, not {reprlib.repr(names)}")
    fault = fault_of_names(names)
    if fault:
        raise ConfigError(f"{file}: {fault}")
    if any(isinstance(name, bool) for name in names):
        raise ConfigError(
            f"{file}: one of the names is yes, no, on, off, true or false, which YAML takes for a truth value; "
            'write it in quotes, such as "yes"'
        )
    return [str(name) for name in names]


def label_path(image: Path) -> Path:
    """The YOLO label file of an image: the last folder ``images`` becomes ``labels``, the suffix ``.txt``.

    Example:
        >>> label_path(Path("set/images/val/a.jpg")).as_posix()
        'set/labels/val/a.txt'
    """
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _first(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, list) and entry else entry)[:4096]


def _names(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names, nc = class_names(content, file), content.get("nc")
    if names is None and type(nc) is int and 0 < nc <= _MOST_CLASSES:
        names = [f"class{index}" for index in range(nc)]
    if not names:
        raise ConfigError(f"{file}: names must list the classes, not {reprlib.repr(content.get('names'))}")
    if nc is not None and nc != len(names):
        raise ConfigError(f"{file}: nc is {reprlib.repr(nc)}, but there are {len(names)} names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(
            f"{file}: names has {reprlib.repr(twice)} twice; their figures could not be told apart"
        )
    return tuple(names)


def _images_at(place: Path, file: Path, split: str) -> Iterator[Path]:
    if not is_there(place):
        raise _not_found(place, file, split)
    if place.is_dir():
        if place.resolve() == Path(place.resolve().anchor):
            raise ConfigError(f"{file}: {split} is the whole file system")
        yield from _images_below(place)
    elif place.is_file() and place.suffix == ".txt":
        for line in filter(None, map(str.strip, read_lines(place))):
            yield place.parent / line if line.startswith("./") else Path(line)
    elif place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
        yield place
    else:
        raise _not_found(place, file, split)


def _images_below(top: Path) -> Iterator[Path]:
    """The images in a folder and those in it, through links as well; each folder once, for links may go in circles."""
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(top, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)


def _not_found(place: Path, file: Path, split: str) -> ConfigError:
    return ConfigError(
        f"{file}: {split} images not found at {str(place)[:1000]!r} (looked from {Path.cwd()}); "
        "correct 'path' or run the command from the folder that it is relative to"
    )
