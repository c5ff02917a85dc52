"""``yolov5-ema yolo``: the command line of the package ultralytics, with the blocks known to it."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command

_EPILOG = """\
All arguments are those of the command yolo of the package ultralytics (YOLOv8, YOLO11 and later), and go to it
unchanged. train, val, detect and export take them too, if they name a model with model=.

examples:
  yolov5-ema yolo train model=yolo11n-ema.yaml data=coco8.yaml epochs=3
  yolov5-ema yolo segment train model=yolo11n-seg.yaml data=coco8-seg.yaml
  yolov5-ema yolo track model=best.pt source=video.mp4
  yolov5-ema yolo help
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run ``yolo`` with the adapter installed."""
    load_plugins()
    from yolov5_ema.scripts.yolo import run_yolo

    return run_yolo([*([args.word] if args.word else []), *rest])


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", default="", help="arguments of yolo")


COMMAND = Command(
    "yolo",
    "run ultralytics' own command line, with the blocks available",
    _run,
    _add_flags,
    description="Run the command line of the package ultralytics with the attention blocks available.",
    epilog=_EPILOG,
    usage="yolov5-ema yolo [ARGUMENTS OF yolo]",
    passes_all=True,
)
