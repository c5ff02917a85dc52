"""``yolov5-ema detect``: YOLOv5's own script under the shim, on windows with ``--slice``."""

from __future__ import annotations

from yolov5_ema.cli._slicing import sliceable

COMMAND = sliceable("detect", "detect in images and videos: YOLOv5's own detect, with every flag of it")
