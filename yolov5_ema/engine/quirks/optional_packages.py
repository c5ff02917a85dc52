"""Packages that YOLOv5 imports when it starts but rarely uses, or would install without asking."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.patching import Patches

_ROBOFLOW = ("roboflow", "roboflow.core", "roboflow.core.version")


def _missing(*_: Any, **__: Any) -> Any:
    raise UserError(
        "data sets from Roboflow (--data with an address there) need the package roboflow: pip install roboflow"
    )


def _roboflow_needed(module: SourceModule) -> str | None:
    if not module.code.imports("roboflow", within_function=False):
        return None
    if importlib.util.find_spec("roboflow") is not None:
        return None
    return "roboflow is not installed; train imports it, but uses it only for data sets from Roboflow"


@contextlib.contextmanager
def _roboflow_while_running(module: SourceModule) -> Iterator[None]:
    with Patches() as patches:  # YOLOv5's module keeps the two names; nobody else may find the replacement
        for name in _ROBOFLOW:
            stand_in = types.ModuleType(name)
            stand_in.__dict__.update(Roboflow=_missing, Version=type("Version", (), {}), __path__=[])
            patches.set_item(sys.modules, name, stand_in)
        yield


ROBOFLOW = Quirk(
    name="roboflow",
    symptom="train: ModuleNotFoundError: No module named 'roboflow'",
    versions="PyPI 7.0.14",
    needed=_roboflow_needed,
    settled=by_absence,
    while_running=_roboflow_while_running,
)


def _ultralytics_needed(module: SourceModule) -> str | None:
    if not module.code.imports("ultralytics"):
        return None
    if module.name != "utils.general" or importlib.util.find_spec("ultralytics") is not None:
        return None
    return "ultralytics is not installed; upstream's newest YOLOv5 would install it with pip when it is imported"


@contextlib.contextmanager
def _ultralytics_while_running(module: SourceModule) -> Iterator[None]:
    raise UserError(
        f"{module.engine} needs the package ultralytics, which is not installed: pip install 'yolov5-ema[ultralytics]'"
    )
    yield


ULTRALYTICS = Quirk(
    name="ultralytics",
    symptom="No module named 'ultralytics', or the import of YOLOv5 starts 'pip install -U ultralytics'",
    versions="7.0.14, upstream's newest",
    needed=_ultralytics_needed,
    settled=by_absence,
    while_running=_ultralytics_while_running,
)
