"""Where a data YAML's images are, as the YOLOv5 at hand sees it, and whether what it says to fetch is fetched."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from yolov5_ema.data.dataset import (
    Dataset,
    class_names,
    dataset_root,
    entries_of,
    is_there,
    load_dataset,
    place_of,
)
from yolov5_ema.data.image_files import IMAGES
from yolov5_ema.data.yaml_files import load_yaml
from yolov5_ema.errors import ConfigError, EngineNotFoundError
from yolov5_ema.resources import data_dir, find_shipped
from yolov5_ema.upstream.locate import Engine, locate

# the data YAMLs of YOLOv5 v6.0 and later; others in its folder are what a user has put there
_OF_YOLOV5 = frozenset(
    (
        "argoverse",
        "coco",
        "coco128",
        "coco128-seg",
        "globalwheat2020",
        "imagenet",
        "imagenet10",
        "imagenet100",
    )
    + ("imagenet1000", "objects365", "sku-110k", "visdrone", "voc", "xview")
)
_MOST_CLASSES = 100_000
_approved: ContextVar[str | None] = ContextVar("approved download", default=None)


def find_yaml(name: str, engine: Engine | None = None) -> Path | None:
    """The YAML that a path or a bare name means: the user's file, one of ours, or one of YOLOv5's; None for none."""
    if name and is_there(Path(name)):
        return Path(name)
    shipped = find_shipped(name)
    if shipped is not None or engine is None or not name or Path(name).name != name:
        return shipped
    files = (file for part in ("models", "data") for file in (engine.root / part).rglob("*.*"))
    return min((file for file in files if file.name == name), default=None)


def open_dataset(name: str, engine: Engine | None = None) -> Dataset:
    """The data set of a data YAML, found and read as `val` of the YOLOv5 at hand would.

    Args:
        name: the user's YAML, or the bare name of one that ships with yolov5-ema or with YOLOv5.
        engine: the YOLOv5; None: whichever is found, if one is.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it names no classes.
    """
    engine = engine or engine_at_hand()
    file = find_yaml(name, engine)
    if file is None:
        places = "yolov5-ema" if engine is None else f"yolov5-ema or of {engine}"
        raise ConfigError(f"{name}: no such data YAML here or among those of {places}")
    return load_dataset(file, [] if engine is None else relative_bases(engine))


def engine_at_hand() -> Engine | None:
    """The YOLOv5 that commands would run, without importing it; None if there is none."""
    try:
        return locate()
    except EngineNotFoundError:
        return None


def image_root(content: Mapping[str, Any], file: Path, engine: Engine) -> Path:
    """The folder that a data YAML's splits are relative to; see `dataset_root`.

    A relative ``path`` means, in v6.0, one from the working directory, and from v6.1 on one from
    YOLOv5's own folder, which for the PyPI package is inside site-packages.
    """
    return dataset_root(content, file, relative_bases(engine))


def relative_bases(engine: Engine) -> list[Path]:
    """Folders that a relative ``path`` may start from, beside the working directory and the YAML's own."""
    return [] if engine.release == (6, 0) else [engine.root]


def may_download(file: Path, engine: Engine) -> bool:
    """Whether what a data YAML says under ``download`` is done: in YOLOv5's own and in ours.

    It is code, a command of a shell, or an archive that is unpacked where the YAML says: out of a stranger's file each
    of them could change anything on the machine.
    """
    place = file.resolve()
    if place.parent == data_dir().resolve():
        return True
    return place.parent == (engine.root / "data").resolve() and place.stem.lower() in _OF_YOLOV5


@contextmanager
def approving(download: Any) -> Iterator[None]:
    """Within: `approved_download` says yes to this text, and to no other."""
    token = _approved.set(download if isinstance(download, str) else None)
    try:
        yield
    finally:
        _approved.reset(token)


def approved_download(text: Any) -> bool:
    """Whether a text is the ``download`` of the data YAML that is being looked at, and may be run."""
    return isinstance(text, str) and text == _approved.get()


def check_data(file: Path, splits: tuple[str, ...], engine: Engine) -> None:
    """Check a data YAML: its keys, and that each split has images.

    Raises:
        ConfigError: names the file, the key or the folder, and what to do.
    """
    content = load_yaml(file)
    if content.get("train_json_path") is not None and "train" in splits:
        _check_coco_keys(content, file)
        return  # the PyPI package converts COCO data itself
    _check_classes(content, file)
    root = image_root(content, file, engine)
    for split in ("train", "val", "test"):  # YOLOv5 puts the root before each, whichever it goes on to use
        entries_of(content, split, file)
    for split in splits:
        entries = entries_of(content, split, file)
        if not entries:
            raise ConfigError(
                f"{file}: the key {split!r} is missing; it must name the folder of the {split} images, "
                f"such as '{split}: images/{split}'"
            )
        for entry in entries:
            _check_split(place_of(root, entry), split, file, content.get("download"), engine)


def _check_coco_keys(content: dict[str, Any], file: Path) -> None:
    for key in ("train_json_path", "val_json_path", "train_image_dir", "val_image_dir"):
        value = content.get(key)
        if not isinstance(value, str) or not is_there(Path(value)):
            raise ConfigError(
                f"{file}: {key} must name what is there, not {reprlib.repr(value)} (train_json_path asks for COCO data)"
            )


def _check_classes(content: dict[str, Any], file: Path) -> None:
    names, nc = class_names(content, file), content.get("nc")
    if names is None and nc is None:
        raise ConfigError(f"{file}: 'nc' (number of classes) and 'names' (their list) are missing")
    if nc is not None and (type(nc) is not int or not 1 <= nc <= _MOST_CLASSES):
        raise ConfigError(
            f"{file}: nc must be a whole number of classes, at least 1 and at most {_MOST_CLASSES}, "
            f"not {reprlib.repr(nc)}"
        )
    if "names" in content and not names:
        raise ConfigError(f"{file}: names is empty; it must list the classes")
    if names is not None and nc is not None and len(names) != nc:
        raise ConfigError(f"{file}: nc is {nc}, but there are {len(names)} names")


def _check_split(place: Path, split: str, file: Path, download: Any, engine: Engine) -> None:
    if not is_there(place):
        if isinstance(download, str) and may_download(file, engine):
            return
        fetch = (
            " What it says under 'download' is done only out of YOLOv5's own YAMLs: fetch the images yourself, if you "
            "know where they come from."
            if download
            else ""
        )
        raise ConfigError(
            f"{file}: {split} images not found at {_shown(place)} (looked from {Path.cwd()}); "
            f"correct 'path' or run the command from the folder that it is relative to.{fetch}"
        )
    if place.resolve() == Path(place.resolve().anchor):
        raise ConfigError(f"{file}: {split} is the whole file system")
    if place.is_dir() and not _has_file(place, IMAGES):
        raise ConfigError(f"{file}: no images for {split} in {place}; known are {', '.join(sorted(IMAGES))}")


def _shown(place: Path, most: int = 1000) -> str:
    text = str(place)
    return text if text.isprintable() and len(text) <= most else repr(text[:most])


def _has_file(folder: Path, suffixes: set[str]) -> bool:
    return any(path.suffix[1:].lower() in suffixes for path in folder.rglob("*.*"))
