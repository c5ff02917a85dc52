"""``yolov5-ema export``: run YOLOv5's own script with the shim installed."""

from __future__ import annotations

from yolov5_ema.cli._slicing import script_command

COMMAND = script_command("export", "export to TorchScript, ONNX …: YOLOv5's own export, with all its flags")
