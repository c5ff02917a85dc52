"""Opening data YAMLs in the way of the YOLOv5 in use, and deciding whether their downloads are allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from yolov5_ema.data.dataset import (
    SPLITS,
    Conventions,
    Dataset,
    ImagesNotFoundError,
    is_there,
    load_dataset,
    names_coco_files,
)
from yolov5_ema.errors import ConfigError, EngineNotFoundError
from yolov5_ema.resources import data_dir, find_shipped
from yolov5_ema.upstream.loaders import image_suffixes, polygon_from
from yolov5_ema.upstream.locate import Engine, locate
from yolov5_ema.upstream.patching import holding
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

# the data YAMLs of YOLOv5 v6.0 and later; other files in its folder come from the user
_OF_YOLOV5 = (
    *("argoverse", "coco", "coco128", "coco128-seg", "globalwheat2020", "imagenet", "imagenet10", "imagenet100"),
    *("imagenet1000", "objects365", "sku-110k", "visdrone", "voc", "xview"),
)
_NOT_FETCHED = (
    ". Its 'download' is not run, because only those of YOLOv5's own YAMLs are: fetch the images yourself if you trust "
    "their source."
)
_approved: ContextVar[str | None] = ContextVar("approved download", default=None)
_opened: ContextVar[dict[Path, Dataset] | None] = ContextVar("opened data sets", default=None)


def find_yaml(name: str, engine: Engine | None = None) -> Path | None:
    """Find the YAML of a path or a bare name: the user's file, a shipped one, or the engine's; None if not found."""
    if name and is_there(Path(name)):
        return Path(name)
    shipped = find_shipped(name)
    if shipped is not None or engine is None or not name or Path(name).name != name:
        return shipped
    folders = ("cfg/models", "cfg/datasets") if engine.kind == ULTRALYTICS else ("models", "data")
    files = (file for part in folders for file in (engine.root / part).rglob("*.*"))
    return min((file for file in files if file.name == name), default=None)


def find_data_of_run(name: str, run: Path, engine: Engine | None = None) -> Path | None:
    """Find the data YAML that a run's options name: by its path from here or from the folders above it, or by name.

    One of the folders above the run is usually the folder in which the training was started.
    """
    places = (Path(name), *(above / name for above in list(run.resolve().parents)[:3]))
    there = (place for place in places if is_there(place) and place.is_file())
    found = next(there, None) or find_yaml(name, engine)
    return found if found is not None and found.is_file() else None


def open_dataset(name: str, engine: Engine | None = None, *, lenient: bool = False) -> Dataset:
    """Open the data set of a data YAML, found and read in the same way as by `val` of the YOLOv5 in use.

    All commands open data sets with this function. It is in this room, and not in `data`, because releases of YOLOv5
    differ in where they look for files and what they read; `data` does not know any YOLOv5.

    Args:
        name: the user's YAML, or the bare name of one that ships with yolov5-ema or with YOLOv5.
        engine: the YOLOv5; None for the one that `locate` finds, if any.
        lenient: see `load_dataset`.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it names no classes.
    """
    engine = engine or engine_at_hand()
    file = find_yaml(name, engine)
    if file is None:
        places = "yolov5-ema" if engine is None else f"yolov5-ema or of {engine}"
        raise ConfigError(f"{name}: no such data YAML here or among those of {places}")
    conventions, opened = conventions_of(engine), _opened.get()
    dataset = (opened or {}).get(file.absolute())
    if dataset is None or dataset.conventions != conventions:
        dataset = load_dataset(file, conventions, lenient=True)
    if not lenient:
        dataset.refuse_unfit_names()
    if opened is not None:
        opened[file.absolute()] = dataset
    return dataset


def opening_once(*known: Dataset) -> AbstractContextManager[None]:
    """Inside the ``with`` block, `open_dataset` reads each data YAML once and lists the images of each split once.

    So the steps of a command get the same data set as YOLOv5, which opens it again by the name of the file.

    Args:
        known: data sets that are already open.
    """
    return holding(_opened, {**(_opened.get() or {}), **{dataset.file.absolute(): dataset for dataset in known}})


def engine_at_hand() -> Engine | None:
    """The YOLOv5 that the commands would run, without importing it; None if none is found."""
    try:
        return locate()
    except EngineNotFoundError:
        return None


def conventions_of(engine: Engine | None) -> Conventions:
    """How a YOLOv5 reads data sets; for None, how the newest does.

    In v6.0, a relative ``path`` starts from the working directory. From v6.1 on, it starts from YOLOv5's own folder,
    which is inside site-packages for the PyPI package. In ultralytics, it starts from the folder of its settings.
    """
    if engine is None:
        return Conventions()
    if engine.kind == ULTRALYTICS:
        bases: tuple[Path, ...] = (Path(engine.module("utils").DATASETS_DIR),)
    else:
        bases = () if engine.release == (6, 0) else (engine.root,)
    return Conventions(bases, image_suffixes(engine), polygon_from(engine))


def may_download(file: Path, engine: Engine) -> bool:
    """Whether the ``download`` of a data YAML may run: only if the YAML ships with YOLOv5 or with this package.

    A ``download`` is code, a shell command, or an archive that is unpacked where the YAML says. In a file from somebody
    else, each of them could change anything on the machine.
    """
    place = file.resolve()
    if place.parent == data_dir().resolve():
        return True
    return place.parent == (engine.root / "data").resolve() and place.stem.lower() in _OF_YOLOV5


def approving(download: Any) -> AbstractContextManager[None]:
    """Inside the ``with`` block, `approved_download` is True for this text only."""
    return holding(_approved, download if isinstance(download, str) else None)


def approved_download(text: Any) -> bool:
    """Whether a text is the ``download`` of the data YAML that is being read, and may be run."""
    return isinstance(text, str) and text == _approved.get()


def check_data(dataset: Dataset, splits: Iterable[str], engine: Engine) -> None:
    """Check that splits of a data set have images.

    Raises:
        ConfigError: a split cannot be used; the message names the file, the key or the folder, and says what to do.
    """
    if names_coco_files(dataset.content) and "train" in splits:
        _check_coco_keys(dataset.content, dataset.file)
        return
    for split in SPLITS:  # YOLOv5 joins the root and every split, also those that it does not use
        dataset.entries(split)
    for split in splits:
        try:
            dataset.images(split)
        except ImagesNotFoundError as error:
            download = dataset.content.get("download")
            if not isinstance(download, str) or not may_download(dataset.file, engine):
                raise ConfigError(f"{error}{_NOT_FETCHED if download else ''}") from None


def _check_coco_keys(content: Mapping[str, Any], file: Path) -> None:
    for key in ("train_json_path", "val_json_path", "train_image_dir", "val_image_dir"):
        value = content.get(key)
        if not isinstance(value, str) or not is_there(Path(value)):
            raise ConfigError(
                f"{file}: {key} must name an existing file or folder, not {reprlib.repr(value)} "
                "(the key train_json_path says that this is COCO data)"
            )
