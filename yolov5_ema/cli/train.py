"""``yolov5-ema train``: YOLOv5's own script under the shim."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import main_of_script

SUMMARY = "train a detector: YOLOv5's own train, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``train``."""
    return main_of_script("train", argv)
