"""``yolov5-ema val``: YOLOv5's own script under the shim, on windows with ``--slice``."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._slicing import add_slicing, run_sliceable
from yolov5_ema.cli.command import Command


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run YOLOv5's ``val``, sliced if asked to."""
    return run_sliceable(COMMAND, args, rest)


COMMAND = Command(
    "val",
    "validate a detector: YOLOv5's own val, with every flag of it",
    _run,
    add_slicing,
    passes_to="val",
)
