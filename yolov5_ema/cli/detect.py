"""``yolov5-ema detect``: YOLOv5's own script under the shim, on windows with ``--slice``."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._slicing import run_sliceable

SUMMARY = "detect in images and videos: YOLOv5's own detect, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``detect``, sliced if asked to; 1 if files could not be used in full, which it reports."""
    return run_sliceable("detect", argv)
