"""``yolov5-ema val``: YOLOv5's own script under the shim."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import main_of_script

SUMMARY = "validate a detector: YOLOv5's own val, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``val``."""
    return main_of_script("val", argv)
