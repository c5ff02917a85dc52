"""``yolov5-ema val``: YOLOv5's own script under the shim, on windows with ``--slice``."""

from __future__ import annotations

from yolov5_ema.cli._slicing import sliceable

COMMAND = sliceable("val", "validate a detector: YOLOv5's own val, with every flag of it")
