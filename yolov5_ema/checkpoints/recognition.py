"""Tells which YOLO a weights file belongs to, from what the file says, without loading it."""

from __future__ import annotations

from pathlib import Path

from yolov5_ema.checkpoints.exported_models import form_of, metadata_of
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS
from yolov5_ema.weights.checkpoint_files import header_in, is_safetensors, open_pickles
from yolov5_ema.weights.inert_pickle import class_name
from yolov5_ema.weights.kinds import is_of_ultralytics, models_in
from yolov5_ema.weights.names import OF_YOLOV5

YOLOV5 = "yolov5"


def engine_of_weights(path: Path) -> str | None:
    """The YOLO that a weights file was made by: ``yolov5`` or ``ultralytics``; None if the file does not say.

    A file that cannot be read belongs to none; what is wrong with it is reported when it is loaded.
    """
    try:
        if form_of(path) is not None:
            return _of_exported(path)
        if is_safetensors(path):
            return _of_converted(path)
        opened = open_pickles(path)
    except (UserError, OSError):
        return None
    if is_of_ultralytics(opened):
        return ULTRALYTICS
    return YOLOV5 if any(OF_YOLOV5.fullmatch(class_name(model)) for model in models_in(opened.root.value)) else None


def _of_converted(path: Path) -> str | None:
    """The engine in the header that ``convert`` writes; YOLOv5's files do not name it."""
    header = header_in(path)
    return None if header is None else str(header.get("engine", YOLOV5))


def _of_exported(path: Path) -> str | None:
    """YOLOv5 writes the names and the stride into an exported model, and ultralytics the task as well."""
    metadata = metadata_of(path)
    if "names" not in metadata:
        return None
    return ULTRALYTICS if "task" in metadata else YOLOV5
