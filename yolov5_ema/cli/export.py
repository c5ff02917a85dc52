"""``yolov5-ema export``: YOLOv5's own script under the shim."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import main_of_script

SUMMARY = "export to TorchScript, ONNX …: YOLOv5's own export, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``export``."""
    return main_of_script("export", argv)
