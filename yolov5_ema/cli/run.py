"""``yolov5-ema run``: any script, with the shim installed."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.cli.command import Command

_EPILOG = """\
All that stands behind a script of your own goes to it as it is, a first -- alone excepted; flags of yolov5-ema stand
before the script. Scripts of YOLOv5 take them anywhere.

examples:
  yolov5-ema run my_experiment.py --lr 0.1
  yolov5-ema run --plugin my_blocks my_experiment.py --conflicts none
  yolov5-ema run segment/train.py --help
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run a Python file as ``python FILE …`` would, under the shim."""
    from yolov5_ema.engine import shim
    from yolov5_ema.scripts import running as scripts

    load_plugins()
    arguments = rest[1:] if rest[:1] == ["--"] else rest
    return scripts.run_file(shim.install(), args.script, arguments, more_help=COMMAND.help_of_own_flags())


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", help="path of the script; also one relative to the YOLOv5 in use")
    parser.add_argument("arguments", nargs="*", default=[], help="what the script itself gets")


COMMAND = Command(
    "run",
    "run a script of your own, or another one of YOLOv5's, with the blocks known",
    _run,
    _add_flags,
    description="Run a Python script with the attention blocks known to YOLOv5.",
    epilog=_EPILOG,
    passes_all=True,
)
