"""``yolov5-ema export``: run YOLOv5's own script with the shim installed."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run YOLOv5's ``export``."""
    from yolov5_ema.engine import shim
    from yolov5_ema.scripts import running as scripts

    load_plugins()
    return scripts.run_script(shim.install(), "export", rest, more_help=COMMAND.help_of_own_flags())


COMMAND = Command(
    "export",
    "export to TorchScript, ONNX …: YOLOv5's own export, with all its flags",
    _run,
    passes_to="export",
)
