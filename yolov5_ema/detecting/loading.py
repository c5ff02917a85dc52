"""Load a trained detector: `load_detector` for the commands, `load` for code that uses the package."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.checkpoints.exported_models import form_of, metadata_of
from yolov5_ema.checkpoints.loading import trusting
from yolov5_ema.checkpoints.recognition import YOLOV5, engine_of_weights
from yolov5_ema.detecting.protocol import DEFAULTS, DETECT, SEGMENT, Detector, Format, LoadOptions, with_module
from yolov5_ema.detecting.ultralytics_model import UltralyticsDetector, UltralyticsTorchDetector
from yolov5_ema.detecting.yolov5_exported import Yolov5Exported
from yolov5_ema.detecting.yolov5_pt import Yolov5Detector
from yolov5_ema.engine import shim
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.ultralytics import NAME as ULTRALYTICS

_LOGGER = logging.getLogger(__name__)

_FORMATS: tuple[Format, ...] = (UltralyticsDetector, UltralyticsTorchDetector, Yolov5Exported, Yolov5Detector)
"""The formats. The first whose ``reads`` accepts a file opens it, else the last, which says what is wrong with it."""


def load_detector(
    weights: str | os.PathLike[str],
    options: LoadOptions = DEFAULTS,
    *,
    engine: Engine,
    trust: bool | None = None,
    tasks: Sequence[str] = (DETECT,),
) -> Detector:
    """Load a detector from a file of any supported format.

    Args:
        weights: the file.
        options: see `LoadOptions`.
        engine: the YOLO that the file belongs to, see `engine_for`.
        trust: unpickle anything that the file holds. None: as set by ``--trust-checkpoint``.
        tasks: the accepted tasks, see `yolov5_ema.detecting.protocol`.

    Raises:
        UserError: the file cannot be used, does not hold a detector, or holds one for another task; a `CheckpointError`
            if it is missing, damaged, or holds objects that no checkpoint needs.
    """
    file = Path(weights)
    form = next((form for form in _FORMATS if form.reads(file, engine)), _FORMATS[-1])
    with trusting(trust):
        detector = form(file, engine, options)
    if detector.task not in tasks:
        raise UserError(f"{file} {_other_task(detector.task, engine)}")
    return detector


def engine_for(weights: Sequence[str | os.PathLike[str]], said: str | None = None) -> Engine:
    """The YOLO that weights belong to, with the shim or the adapter installed.

    Args:
        weights: the files; one that does not say where it comes from goes with the others.
        said: ``yolov5`` or ``ultralytics``, the user's choice; needed only if no file says it, and YOLOv5 otherwise.

    Raises:
        UserError: the files belong to different YOLOs, or not to the one that the user chose.
        EngineNotFoundError: that YOLO is not installed.
    """
    of_files = {str(file): engine_of_weights(Path(file)) for file in weights}
    known = {engine: file for file, engine in of_files.items() if engine is not None}
    if len(known) > 1:
        raise UserError(f"{known[YOLOV5]} belongs to YOLOv5 and {known[ULTRALYTICS]} to ultralytics; use one at a time")
    (found,) = known or {said or YOLOV5: ""}
    if said is not None and said != found:
        raise UserError(f"{known[found]} belongs to {found}, not to {said}: leave out --engine {said}")
    for file in known.values():
        _warn_of_own_thresholds(Path(file))
    return shim.install(ULTRALYTICS if found == ULTRALYTICS else None)


def _warn_of_own_thresholds(file: Path) -> None:
    """Say that a model leaves out boxes itself: ultralytics' exporter writes the suppression into it if asked to."""
    if form_of(file) is not None and metadata_of(file).get("args", {}).get("nms"):
        _LOGGER.warning(
            "yolov5-ema: warning: %s was exported with nms=True: boxes that the thresholds of its export leave out (by "
            "default, those below a confidence of 0.25) are not found, whatever --conf-thres and --iou-thres say, and "
            "are missing in the figures of evaluate. Without nms=True, the thresholds are yours",
            file,
        )


def _other_task(task: str, engine: Engine) -> str:
    if engine.kind == ULTRALYTICS:
        return f"is a model for the task {task}, not for detection: use 'yolov5-ema yolo {task} …' with model=FILE"
    return "is a segmentation model: use 'yolov5-ema run segment/predict.py' or segment/val.py"


def is_read(weights: str | os.PathLike[str], engine: Engine) -> bool:
    """Whether `load_detector` supports such a file; YOLOv5's own scripts run others, such as exported models."""
    return any(form.reads(Path(weights), engine) for form in _FORMATS)


def load(weights: str | os.PathLike[str], device: Any = None, *, trust: bool | None = None) -> torch.nn.Module:
    """Load a detector trained here, or any YOLOv5 checkpoint, ready to call on images.

    Installs the shim (see `yolov5_ema.install`), reads the checkpoint safely, folds the BatchNorms and
    wraps the model in YOLOv5's own ``AutoShape``.

    Args:
        weights: path of a ``.pt`` checkpoint.
        device: a `torch.device`, ``"cpu"``, ``"cuda:0"`` …; None: the first GPU if there is one, else CPU.
        trust: unpickle anything that the file holds. None: as set by ``--trust-checkpoint``.

    Returns:
        The model. Call it with a path, a URL, an RGB array of shape (H, W, 3) and dtype uint8, a PIL image, or a
        list of these, and ``size=`` in pixels. The result has ``.xyxy`` (per image an (N, 6) tensor: x1, y1,
        x2, y2 in pixels, confidence, class), ``.pandas()``, ``.print()``, ``.save()``.

    Raises:
        CheckpointError: the file is missing, damaged, or holds objects that no checkpoint needs.
        EngineNotFoundError: there is no YOLOv5 to build the model with.
        UserError: the file does not hold a detector.

    Example:
        >>> import yolov5_ema
        >>> model = yolov5_ema.load("runs/train/exp/weights/best.pt")  # doctest: +SKIP
        >>> results = model("street.jpg", size=640)                    # doctest: +SKIP
        >>> results.pandas().xyxy[0]                                   # doctest: +SKIP
    """
    engine = shim.install()
    detector = load_detector(weights, LoadOptions(_device(device)), engine=engine, trust=trust, tasks=(DETECT, SEGMENT))
    model: Any = with_module(detector).module
    if hasattr(model, "autoshape"):  # up to v6.0 a method, which also copies the attributes
        return model.autoshape()
    common = engine.module("models.common")
    return common.AutoShape(model)


def _device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def device_of(engine: Engine, flag: str) -> torch.device:
    """The device that YOLOv5's ``--device`` names.

    Raises:
        UserError: there is no such device.
    """
    torch_utils = engine.module("utils.torch_utils")  # in YOLOv5 and in ultralytics
    with errors_as_user_errors(engine):
        device: torch.device = torch_utils.select_device(flag)
    return device
