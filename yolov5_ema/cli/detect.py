"""``yolov5-ema detect``: YOLOv5's own script under the shim, on windows with ``--slice``."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._slicing import add_slicing, run_sliceable
from yolov5_ema.cli.command import Command


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run YOLOv5's ``detect``, sliced if asked to; 1 if files could not be used in full, which it reports."""
    return run_sliceable(COMMAND, args, rest)


COMMAND = Command(
    "detect",
    "detect in images and videos: YOLOv5's own detect, with every flag of it",
    _run,
    add_slicing,
    passes_to="detect",
)
