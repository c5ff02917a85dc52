"""``yolov5-ema val``: run YOLOv5's own script with the shim installed; ``--slice`` detects in windows."""

from __future__ import annotations

from yolov5_ema.cli._slicing import script_command

COMMAND = script_command("val", "validate a detector: YOLOv5's own val, with all its flags", is_sliceable=True)
