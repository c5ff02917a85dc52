"""What a checkpoint of the package `ultralytics` may hold (`yolov5_ema.checkpoints.allowed.Rules`)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from yolov5_ema.checkpoints.allowed import Rules, plain_names
from yolov5_ema.settings import VARIABLES
from yolov5_ema.weights.checkpoint_files import PickleFile
from yolov5_ema.weights.kinds import Kind, of_script, of_yolov5
from yolov5_ema.weights.names import (
    OF_TORCHVISION,
    OF_ULTRALYTICS,
    ULTRALYTICS_DATA,
    ULTRALYTICS_LOSS,
    ULTRALYTICS_SETTINGS,
)

# names that releases of ultralytics have changed, and today's
_RENAMED = {
    "ultralytics.nn.modules.block.Silence": "torch.nn.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
    "ultralytics.yolo.utils.IterableSimpleNamespace": "ultralytics.utils.IterableSimpleNamespace",
}
_HOMES = ("ultralytics.", "torchvision.", "torch.nn.")


def allow_list(names: Iterable[str]) -> dict[str, Any]:
    """The allowed classes and functions among the names that a file uses, by name.

    Layers, losses and torchvision's networks are looked up in the installed packages. No other module is imported.
    """
    names = set(names)
    known = plain_names(names)
    for name in names - known.keys():
        found = _found(name)
        if found is not None:
            known[name] = found
    return known


def _found(name: str) -> Any:
    """The class with a name that a checkpoint may use; None if there is none, or it is not of an allowed kind."""
    if not any(kind.fullmatch(name) for kind in (OF_ULTRALYTICS, ULTRALYTICS_LOSS, OF_TORCHVISION, ULTRALYTICS_DATA)):
        return None
    cls = _class(name) or _class(_RENAMED.get(name, ""))
    if cls is None or not cls.__module__.startswith(_HOMES):
        return None
    is_allowed = issubclass(cls, nn.Module) or ULTRALYTICS_LOSS.fullmatch(name) or ULTRALYTICS_DATA.fullmatch(name)
    return cls if is_allowed else None


def _class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError:
        return None
    return found if inspect.isclass(found) else None


def _advice(names: set[str]) -> str:
    return (
        "If it is a block of your own, import the module that registers it; if you know where the file comes from and "
        f"trust it with your machine, set {VARIABLES['trust']}=1."
    )


def _other_kind(opened: PickleFile, path: Path) -> Kind | None:
    return of_script(opened) or of_yolov5(opened)


RULES = Rules(
    whose="checkpoint of ultralytics",
    allowed=allow_list,
    advice=_advice,
    other_kind=_other_kind,
    empty=ULTRALYTICS_SETTINGS,
)
