"""``yolov5-ema detect``: YOLOv5's own script under the shim."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import main_of_script

SUMMARY = "detect in images and videos: YOLOv5's own detect, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``detect``."""
    return main_of_script("detect", argv)
