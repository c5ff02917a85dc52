"""Guards: checks at the places where YOLOv5 executes, unpickles or fetches what a file says.

A guard is a `yolov5_ema.engine.quirks.base.Quirk`: it looks at the text of one YOLOv5 module, and wraps the calls by
which that module could run something from a file. Because the check is made at the call, it covers every command and
every kind of file.
"""

from __future__ import annotations

from yolov5_ema.engine.guards.arrays import ARRAYS
from yolov5_ema.engine.guards.commands import COMMANDS
from yolov5_ema.engine.guards.crops import CROPS_STAY
from yolov5_ema.engine.guards.datasets import DATASETS
from yolov5_ema.engine.guards.evaluating import EVALUATING
from yolov5_ema.engine.guards.exported import EXPORTED_MODELS, TORCHSCRIPT
from yolov5_ema.engine.guards.resumed_training import RESUMED_OPTIONS
from yolov5_ema.engine.guards.special_files import SPECIAL_FILES
from yolov5_ema.engine.guards.tensorflow import TENSORFLOW
from yolov5_ema.engine.quirks.base import Quirk
from yolov5_ema.engine.quirks.torch_load import FAULTS_OF_MODELS

GUARDS: tuple[Quirk, ...] = (
    ARRAYS,
    COMMANDS,
    CROPS_STAY,
    DATASETS,
    EVALUATING,
    EXPORTED_MODELS,
    FAULTS_OF_MODELS,
    RESUMED_OPTIONS,
    SPECIAL_FILES,
    TENSORFLOW,
    TORCHSCRIPT,
)

__all__ = ["GUARDS"]
