"""``yolov5-ema detect``: run YOLOv5's own script with the shim installed; ``--slice`` detects in windows."""

from __future__ import annotations

from yolov5_ema.cli._slicing import script_command

COMMAND = script_command(
    "detect", "detect in images and videos: YOLOv5's own detect, with all its flags", is_sliceable=True
)
