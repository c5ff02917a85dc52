"""``yolov5-ema val``: YOLOv5's own script under the shim, on windows with ``--slice``."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._slicing import run_sliceable

SUMMARY = "validate a detector: YOLOv5's own val, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``val``, sliced if asked to."""
    return run_sliceable("val", argv)
