"""``models/tf.py`` of a YOLOv5 with a stand-in for TensorFlow."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import yolov5_ema
from yolov5_ema.engine import activation


class Layer:
    def __init__(self, *args: object, **kwargs: object) -> None: ...


class StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("Layer", "Model"):
            return type(name, (Layer,), {})
        return (lambda *args, **kwargs: Layer()) if name[0].isupper() else StandIn(name)


def _stand_in() -> None:
    names = ["tensorflow", "tensorflow.keras", "tensorflow.python", "tensorflow.python.framework"]
    for name in [*names, "tensorflow.python.framework.convert_to_constants"]:
        sys.modules[name] = StandIn(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    top: Any = sys.modules["tensorflow"]
    top.keras = sys.modules["tensorflow.keras"]


def parses_rows(root: str, canary: Path, guarded: str) -> None:
    """Print for each of five rows whether code of it made the canary, and what was raised."""
    _stand_in()
    if guarded == "no":
        activation.GUARDS = ()
    tf = yolov5_ema.install(root).module("models.tf")
    code = f"__import__('os').mkdir({str(canary)!r})"
    for name, args in ((code, [8]), ("Conv", [code]), ("EMA", [code]), ("Conv", [8]), ("EMA", [])):
        row = [-1, 1, name, args]
        model: dict[str, Any] = {"nc": 1, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[1, 2]] * 3}
        model.update(backbone=[row], head=[row])
        try:
            tf.parse_model(model, [3], types.SimpleNamespace(model=[None, None]), (64, 64))
            raised = "nothing"
        except Exception as error:
            raised = type(error).__name__ + " " + str(error).splitlines()[0]
        print("RESULT", canary.is_dir(), raised)
        if canary.is_dir():
            canary.rmdir()
