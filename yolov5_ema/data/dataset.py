"""Data sets described by YOLOv5's data YAMLs: where the images and labels of a split are.

Open one with `upstream.data_yaml.open_dataset`.
"""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolov5_ema.class_names import fault_of_names
from yolov5_ema.data.listing import IMAGE_SUFFIXES, files_below, has_suffix
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.data.yolo_format import POLYGON_FROM, Labels, read_labels
from yolov5_ema.errors import ConfigError
from yolov5_ema.reading import read_text
from yolov5_ema.texts import agreeing, counted

SPLITS = ("train", "val", "test")
_MOST_CLASSES = 100_000


class ImagesNotFoundError(ConfigError):
    """The folder or file that a data YAML names for a split does not exist."""


@dataclass(frozen=True)
class Conventions:
    """How the installed YOLOv5 reads a data set; by default, as the newest release does.

    Attributes:
        bases: folders that a relative ``path`` may start from, besides the working directory and the YAML's folder.
        image_suffixes: the suffixes of image files, such as ``.jpg``.
        polygon_from: the number of columns from which a label row is a polygon, see `POLYGON_FROM`.
    """

    bases: tuple[Path, ...] = ()
    image_suffixes: frozenset[str] = IMAGE_SUFFIXES
    polygon_from: int = POLYGON_FROM


@dataclass(frozen=True)
class Dataset:
    """A data set, as its data YAML describes it.

    Attributes:
        file: the YAML.
        root: the folder that its splits are relative to.
        names: the names of the classes, in order.
        content: the unchanged content of the YAML.
        conventions: how its images and labels are read.
    """

    file: Path
    root: Path
    names: tuple[str, ...]
    content: Mapping[str, Any]
    conventions: Conventions = Conventions()
    _listed: dict[str, tuple[Path, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def splits(self) -> list[str]:
        """The splits, out of train, val and test, that the YAML names."""
        return [split for split in SPLITS if self.content.get(split)]

    def entries(self, split: str) -> list[str]:
        """The folders, lists or images that the YAML names for a split; empty if it does not name the split.

        Raises:
            ConfigError: one of them is not a text.
        """
        value = self.content.get(split)
        entries = value if isinstance(value, (list, tuple)) else [value] if value is not None and value != "" else []
        for entry in entries:
            if not isinstance(entry, str) or not entry or "\0" in entry:
                raise ConfigError(
                    f"{self.file}: {split} must name a folder of images, such as images/{split}, or a list of them, "
                    f"not {reprlib.repr(entry)}"
                )
        return list(entries)

    def place(self, entry: str) -> Path:
        """The path of an entry of a split, see `place_of`."""
        return place_of(self.root, entry)

    def images(self, split: str) -> list[Path]:
        """The images of a split without duplicates, in YOLOv5's order.

        The images are listed once, and the list is kept.

        Raises:
            ImagesNotFoundError: the place that the YAML names for the split is missing.
            ConfigError: the YAML does not name the split, or the split has no image.
        """
        if split not in self._listed:
            self._listed[split] = tuple(self._images(split))
        return list(self._listed[split])

    def _images(self, split: str) -> list[Path]:
        entries = self.entries(split)
        if not entries:
            raise ConfigError(
                f"{self.file}: the key {split!r} is missing; it must name the folder of the {split} images, "
                f"such as '{split}: images/{split}' (the file has {', '.join(self.splits) or 'no splits'})"
            )
        found: dict[str, Path] = {}
        for entry in entries:
            found.update(self._images_at(self.place(entry), split))
        if not found:
            known = ", ".join(sorted(suffix[1:] for suffix in self.conventions.image_suffixes))
            raise ConfigError(
                f"{self.file}: no images for {split} in {', '.join(entries)}; supported suffixes: {known}"
            )
        return list(dict.fromkeys(found[name] for name in sorted(found)))

    def _images_at(self, place: Path, split: str) -> Iterator[tuple[str, Path]]:
        """The images in a folder or list, each with the path that YOLOv5 gives it."""
        if is_there(place) and place.is_dir():
            if place.resolve() == Path(place.resolve().anchor):
                raise ConfigError(f"{self.file}: {split} is the whole file system")
            real, length = os.path.realpath(place), len(str(place))
            files = filter(self._is_image, files_below(str(place)))
            yield from ((real + file[length:], Path(file)) for file in files if not os.path.isdir(file))
        elif not is_there(place) or not place.is_file():
            raise ImagesNotFoundError(
                f"{self.file}: {split} images not found at {str(place)[:1000]!r} (looked from {Path.cwd()}); "
                "correct 'path' or run the command from the folder that it is relative to"
            )
        elif self._is_image(str(place)):
            yield os.path.realpath(place), place
        else:
            yield from self._images_listed(place)

    def _images_listed(self, file: Path) -> Iterator[tuple[str, Path]]:
        """The images in a text file: paths relative to the working directory; after ``./``, to the file's folder."""
        try:
            lines = read_text(file, errors="replace").strip().splitlines()
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
        folder = os.path.dirname(os.path.realpath(file))
        for line in filter(self._is_image, lines):
            if line.startswith("./"):
                yield os.path.join(folder, line[2:]), file.parent / line
            else:
                yield line, Path(line)

    def _is_image(self, file: str) -> bool:
        return has_suffix(file, self.conventions.image_suffixes)

    def labels(self, image: Path) -> Labels:
        """The labels of an image, see `read_labels`.

        Raises:
            UserError: the label file exists but cannot be read.
        """
        return read_labels(label_path(image), len(self.names), self.conventions.polygon_from)

    def extra_path(self, key: str, split: str) -> Path | None:
        """The path that an optional mapping of splits to paths (such as ``coco_annotations``) gives for a split.

        Raises:
            ConfigError: the path does not exist.
        """
        places = self.content.get(key)
        if not isinstance(places, Mapping) or not places.get(split):
            return None
        place = self.root / str(places[split])
        if not is_there(place):
            raise ConfigError(f"{self.file}: {key}, {split}: {str(place)[:1000]!r} is missing")
        return place

    def refuse_unfit_names(self, why: str = "their figures could not be told apart") -> None:
        """Refuse classes without a name, and two classes of the same name.

        Raises:
            ConfigError: says which, and why.
        """
        if not self.names:
            raise ConfigError(f"{self.file}: names must list the classes")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ConfigError(
                f"{self.file}: names has {reprlib.repr(twice[0])} twice; {why}; give each class its own name"
            )


def load_dataset(file: Path, conventions: Conventions = Conventions(), *, lenient: bool = False) -> Dataset:
    """Read a data YAML.

    Args:
        file: the YAML.
        conventions: how to read it.
        lenient: two classes may have the same name, and the names may be missing if the YAML names COCO's
            files, which the PyPI package converts.

    Raises:
        ConfigError: the file cannot be read, or names no classes.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: a data YAML must hold keys such as path, train, val, names")
    root = dataset_root(content, file, conventions.bases)
    dataset = Dataset(file, root, _names(content, file), content, conventions)
    if not lenient:
        dataset.refuse_unfit_names()
    return dataset


def dataset_root(content: Mapping[str, Any], file: Path, bases: Sequence[Path] = ()) -> Path:
    """The folder that a data YAML's splits are relative to.

    A relative ``path`` is relative to the working directory, one of ``bases`` or the YAML's own folder: the first of
    these where a split exists (see `place_of`), or the working directory if none exists.
    """
    path = _home_expanded(content.get("path") or "", file)
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
    """The path of an entry of a split.

    Roboflow writes ``../train/images`` for ``train/images`` in the YAML's folder. If such an entry does not exist, its
    ``../`` is ignored, as in YOLOv5 from v7.0 on.
    """
    place = root / entry
    if entry.startswith("../") and not is_there(place) and is_there(root / entry[3:]):
        return root / entry[3:]
    return place


def _home_expanded(path: Any, file: Path) -> Path:
    if not isinstance(path, str) or "\0" in path:
        raise ConfigError(f"{file}: path must be a folder, not {reprlib.repr(path)}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{file}: path {path!r}: {error}") from error


def is_there(place: Path) -> bool:
    """Whether a path exists; a path that is too long or contains a NUL character does not."""
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def class_names(content: Mapping[str, Any], file: Path) -> list[str] | None:
    """The class names of a data YAML, in the order of the classes; None if the key ``names`` is missing.

    Raises:
        ConfigError: they are neither a list nor a mapping numbered from 0, or one of them is not a name.
    """
    names = content.get("names")
    if names is None:
        return None
    if isinstance(names, Mapping):
        if not all(type(key) is int for key in names) or sorted(names) != list(range(len(names))):
            raise ConfigError(
                f"{file}: names must number its classes from 0 without a gap, not {reprlib.repr(list(names))}; "
                f"{_how_to_number(names)}"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise ConfigError(f"{file}: names must be a list of class names, not {reprlib.repr(names)}")
    fault = fault_of_names(names)
    if fault:
        raise ConfigError(f"{file}: {fault}")
    if any(isinstance(name, bool) for name in names):
        raise ConfigError(
            f"{file}: one of the names is yes, no, on, off, true or false, which YAML reads as a boolean; "
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


def names_coco_files(content: Mapping[str, Any]) -> bool:
    """Whether a data YAML names COCO's files, which the PyPI package converts before it trains."""
    return content.get("train_json_path") is not None


def _how_to_number(names: Mapping[Any, Any]) -> str:
    if any(isinstance(key, str) for key in names):
        return "write the numbers without quotes, such as 0: person"
    missing = next(number for number in range(len(names) + 1) if number not in names)
    return (
        f"if the labels are numbered like that, give class {missing} a name too, such as {missing}: unused; "
        "otherwise renumber the names and the labels without a gap"
    )


def _names(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names, nc = class_names(content, file), content.get("nc")
    if names_coco_files(content):
        return tuple(names or ())
    if names is None and nc is None:
        raise ConfigError(f"{file}: 'nc' (number of classes) and 'names' (their list) are missing")
    if nc is not None and (type(nc) is not int or not 1 <= nc <= _MOST_CLASSES):
        raise ConfigError(
            f"{file}: nc must be a whole number of classes, at least 1 and at most {_MOST_CLASSES}, "
            f"not {reprlib.repr(nc)}"
        )
    if nc is not None and names is None:
        return tuple(f"class{index}" for index in range(nc))
    if not names:
        raise ConfigError(f"{file}: names is empty; it must list the classes")
    if nc is not None and nc != len(names):
        raise ConfigError(f"{file}: nc is {nc}, but there {agreeing(len(names))} {counted(len(names), 'name')}")
    return tuple(names)
