"""Quirks: small, named fixes that old YOLOv5 code needs to run with today's libraries.

A quirk looks at the syntax tree of one YOLOv5 module and at the installed libraries, and does nothing unless both show
that it is needed. `QUIRKS` is the list that ``yolov5-ema doctor`` prints.
"""

from __future__ import annotations

from yolov5_ema.engine.quirks.amp_check import AMP_CHECK
from yolov5_ema.engine.quirks.autoanchor import AUTOANCHOR_FEW_BOXES
from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.engine.quirks.classifiers import CLASSIFIER_CUTOFF
from yolov5_ema.engine.quirks.display import DISPLAY
from yolov5_ema.engine.quirks.distributed import CPU_DDP, ONE_RUN_FOLDER, RESUME_IN_RANKS
from yolov5_ema.engine.quirks.downloads import DOWNLOADS_SAY_SO, FILES_BEFORE_HUB, NO_PIP_BEHIND_THE_BACK
from yolov5_ema.engine.quirks.drawing import DRAWN_ON_COPIES
from yolov5_ema.engine.quirks.export import ONNX_EXPORTER, TORCH_HAS_CUDA
from yolov5_ema.engine.quirks.fonts import FONT_FROM_DISK, FONT_GETSIZE
from yolov5_ema.engine.quirks.label_cache import STALE_LABEL_CACHE
from yolov5_ema.engine.quirks.late_imports import IMPORTS_WHEN_USED
from yolov5_ema.engine.quirks.loss import LOSS_CLAMP
from yolov5_ema.engine.quirks.noval import NOVAL
from yolov5_ema.engine.quirks.numpy_names import NUMPY_NAMES
from yolov5_ema.engine.quirks.openvino import OPENVINO_CONVERTER, OPENVINO_RUNTIME
from yolov5_ema.engine.quirks.optional_packages import ROBOFLOW, ULTRALYTICS
from yolov5_ema.engine.quirks.packaging_names import PKG_RESOURCES
from yolov5_ema.engine.quirks.pictures import PICTURES_IN_ORDER
from yolov5_ema.engine.quirks.randrange import RANDRANGE_FLOAT
from yolov5_ema.engine.quirks.resuming import RESUME_AFTER_KILL, WHOLE_SETTINGS
from yolov5_ema.engine.quirks.run_folders import ROOT_STAYS, RUNS_HERE
from yolov5_ema.engine.quirks.save_json import SAVE_JSON
from yolov5_ema.engine.quirks.torch_amp import TORCH_AMP
from yolov5_ema.engine.quirks.torch_load import ONE_COPY_OF_CLASSES, SAFE_CHECKPOINTS
from yolov5_ema.engine.quirks.wandb_epochs import WANDB_EPOCHS
from yolov5_ema.engine.quirks.weight_transfer import WEIGHT_TRANSFER
from yolov5_ema.engine.quirks.worker_processes import WORKER_PROCESSES

QUIRKS: tuple[Quirk, ...] = (
    PKG_RESOURCES,
    FONT_FROM_DISK,
    FONT_GETSIZE,
    NUMPY_NAMES,
    LOSS_CLAMP,
    SAFE_CHECKPOINTS,
    ONE_COPY_OF_CLASSES,
    AUTOANCHOR_FEW_BOXES,
    ROOT_STAYS,
    RUNS_HERE,
    STALE_LABEL_CACHE,
    SAVE_JSON,
    NOVAL,
    WHOLE_SETTINGS,
    RESUME_AFTER_KILL,
    ONNX_EXPORTER,
    OPENVINO_CONVERTER,
    OPENVINO_RUNTIME,
    TORCH_HAS_CUDA,
    TORCH_AMP,
    AMP_CHECK,
    CPU_DDP,  # after torch-amp, because it extends that quirk's view of torch.cuda
    ONE_RUN_FOLDER,
    RESUME_IN_RANKS,
    RANDRANGE_FLOAT,
    PICTURES_IN_ORDER,
    DRAWN_ON_COPIES,
    DOWNLOADS_SAY_SO,
    FILES_BEFORE_HUB,
    NO_PIP_BEHIND_THE_BACK,
    ROBOFLOW,
    ULTRALYTICS,
    WEIGHT_TRANSFER,
    CLASSIFIER_CUTOFF,
    WORKER_PROCESSES,
    DISPLAY,
    WANDB_EPOCHS,
    IMPORTS_WHEN_USED,
)

__all__ = ["QUIRKS", "Quirk", "SourceModule"]
