"""Guards: where YOLOv5 executes, unpickles or fetches what a file says, it asks here first.

A guard has the form of a quirk (`yolov5_ema.engine.quirks.base.Quirk`): it looks at the text of one YOLOv5 module, and
wraps the calls by which that module could run something out of a file. It stands at the call, so that every command
and every kind of file passes it.
"""

from __future__ import annotations

from yolov5_ema.engine.guards.exported import EXPORTED_MODELS, TORCHSCRIPT
from yolov5_ema.engine.guards.tensorflow import TENSORFLOW
from yolov5_ema.engine.quirks.base import Quirk

GUARDS: tuple[Quirk, ...] = (
    TORCHSCRIPT,
    EXPORTED_MODELS,
    TENSORFLOW,
)

__all__ = ["GUARDS"]
