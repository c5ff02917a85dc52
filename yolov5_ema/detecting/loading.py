"""A trained detector as something to call on images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.checkpoints.loading import check_file, trusting
from yolov5_ema.checkpoints.models import as_yolov5_builds
from yolov5_ema.engine import shim
from yolov5_ema.errors import UserError


def load(
    weights: str | os.PathLike[str], device: Any = None, *, trust: bool | None = None
) -> torch.nn.Module:
    """Load a detector trained here, or any YOLOv5 checkpoint, ready to call on images.

    Installs the shim (see `yolov5_ema.install`), reads the checkpoint safely, folds the BatchNorms and
    wraps the model in YOLOv5's own ``AutoShape``.

    Args:
        weights: path of a ``.pt`` checkpoint.
        device: a `torch.device`, ``"cpu"``, ``"cuda:0"`` …; None: the first GPU if there is one, else CPU.
        trust: unpickle whatever the file holds. None: as ``--trust-checkpoint`` says.

    Returns:
        The model. Call it with a path, a URL, an RGB array of shape (H, W, 3) and dtype uint8, a PIL image, or a
        list of these, and ``size=`` in pixels. The result has ``.xyxy`` (per image an (N, 6) tensor: x1, y1,
        x2, y2 in pixels, confidence, class), ``.pandas()``, ``.print()``, ``.save()``.

    Raises:
        CheckpointError: missing, torn, or holding what no checkpoint needs.
        EngineNotFoundError: there is no YOLOv5 to build the model with.

    Example:
        >>> import yolov5_ema
        >>> model = yolov5_ema.load("runs/train/exp/weights/best.pt")  # doctest: +SKIP
        >>> results = model("street.jpg", size=640)                    # doctest: +SKIP
        >>> results.pandas().xyxy[0]                                   # doctest: +SKIP
    """
    engine = shim.install()
    experimental = engine.module("models.experimental")
    with trusting(trust), as_yolov5_builds(Path(weights)):
        check_file(Path(weights), engine=engine)
        model = experimental.attempt_load(str(weights)).to(_device(device)).eval()
    if not hasattr(model, "stride"):
        raise UserError(f"{weights} holds no detector")
    if hasattr(model, "autoshape"):  # up to v6.0 a method, which also copies the attributes
        return model.autoshape()
    common = engine.module("models.common")
    return common.AutoShape(model)


def _device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
