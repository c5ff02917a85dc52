"""Tells which YOLO a weights file belongs to, from what the file says, without loading it."""

from __future__ import annotations

from pathlib import Path

from yolov5_ema.checkpoints.exported_models import metadata_of
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS
from yolov5_ema.weights.checkpoint_files import open_pickles
from yolov5_ema.weights.inert_modules import is_module
from yolov5_ema.weights.inert_pickle import class_name, lookup
from yolov5_ema.weights.names import OF_YOLOV5

YOLOV5 = "yolov5"


def engine_of_weights(path: Path) -> str | None:
    """The YOLO that a weights file was made by: ``yolov5`` or ``ultralytics``; None if the file does not say.

    A file that cannot be read belongs to none; what is wrong with it is reported when it is loaded.
    """
    try:
        if path.suffix == ".pt" and "torchscript" not in path.name:
            return _of_checkpoint(path)
        return _of_exported(path)
    except (UserError, OSError):
        return None


def _of_checkpoint(path: Path) -> str | None:
    opened = open_pickles(path)
    root = opened.root.value
    models = [root] if is_module(root) else [lookup(root, key) for key in ("ema", "model")]
    classes = [class_name(model) for model in models if is_module(model)]
    if any(name.startswith(f"{ULTRALYTICS}.") for name in classes):
        return ULTRALYTICS
    return YOLOV5 if any(OF_YOLOV5.fullmatch(name) for name in classes) else None


def _of_exported(path: Path) -> str | None:
    """YOLOv5 writes the names and the stride into an exported model, and ultralytics the task as well."""
    metadata = metadata_of(path)
    if "names" not in metadata:
        return None
    return ULTRALYTICS if "task" in metadata else YOLOV5
