"""YOLOv5's data YAMLs: where the images and labels of a split are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolov5_ema.data.text_rows import read_lines
from yolov5_ema.errors import ConfigError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = {".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}


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
        entries = self.content.get(split)
        if not entries:
            raise ConfigError(
                f"{self.file}: the key {split!r} is missing; it has {', '.join(self.splits) or 'no splits'}"
            )
        found: set[Path] = set()
        for entry in entries if isinstance(entries, list) else [entries]:
            found.update(_images_at(self.root / str(entry), self.file, split))
        if not found:
            raise ConfigError(f"{self.file}: no images for {split} in {entries}")
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
        if not place.exists():
            raise ConfigError(f"{self.file}: {key}, {split}: {place} is missing")
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
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: a data YAML must hold keys such as path, train, val, names")
    return Dataset(file, dataset_root(content, file, bases), _names(content, file), content)


def dataset_root(content: Mapping[str, Any], file: Path, bases: Sequence[Path] = ()) -> Path:
    """The folder that a data YAML's splits are relative to.

    A relative ``path`` is taken from the working directory, from ``bases`` or from the YAML's own folder: the
    first of these that holds a split; the first of all if none does.
    """
    path = Path(str(content.get("path") or "")).expanduser()
    if path.is_absolute():
        return path
    candidates = [base / path for base in (Path(), *bases, file.resolve().parent)]
    first_entries = [_first(content[split]) for split in SPLITS if content.get(split)]
    for candidate in candidates:
        if any((candidate / entry).exists() for entry in first_entries):
            return candidate
    return candidates[0]


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
    return str(entry[0] if isinstance(entry, list) and entry else entry)


def _names(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names, nc = content.get("names"), content.get("nc")
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise ConfigError(
                f"{file}: names must count its classes from 0 without a gap, not {sorted(names)}"
            )
        names = [names[index] for index in range(len(names))]
    if names is None and isinstance(nc, int) and nc > 0:
        names = [f"class{index}" for index in range(nc)]
    if not isinstance(names, list) or not names:
        raise ConfigError(f"{file}: names must list the classes, not {names!r}")
    if nc is not None and nc != len(names):
        raise ConfigError(f"{file}: nc is {nc}, but there are {len(names)} names")
    return tuple(str(name) for name in names)


def _images_at(place: Path, file: Path, split: str) -> Iterator[Path]:
    if place.is_dir():
        for folder, _, names in os.walk(place, followlinks=True):
            yield from (Path(folder, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
    elif place.is_file() and place.suffix == ".txt":
        for line in filter(None, map(str.strip, read_lines(place))):
            yield place.parent / line if line.startswith("./") else Path(line)
    elif place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
        yield place
    else:
        raise ConfigError(
            f"{file}: {split} images not found at {place} (looked from {Path.cwd()}); "
            "mend 'path' or run the command from the folder that it is relative to"
        )
