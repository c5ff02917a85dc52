"""``yolov5-ema run``: run any script with the shim installed."""

from __future__ import annotations

import argparse

from yolov5_ema.cli._yolov5 import show_help, start_yolov5
from yolov5_ema.cli.command import Command
from yolov5_ema.upstream.locate import locate

_EPILOG = """\
All arguments after your own script go to the script unchanged, except a -- right after it. Put flags of yolov5-ema
before the script. For scripts of YOLOv5, these flags can be anywhere.

examples:
  yolov5-ema run my_experiment.py --lr 0.1
  yolov5-ema run --plugin my_blocks my_experiment.py --conflicts none
  yolov5-ema run segment/train.py --help
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run a Python file as ``python FILE …`` would, with the shim installed."""
    arguments = rest[1:] if rest[:1] == ["--"] else rest
    if {"-h", "--help"}.intersection(arguments):
        found = locate()
        name = found.script_named(args.script)
        if name is not None:
            show_help(name, arguments, COMMAND, found)
    engine = start_yolov5()
    from yolov5_ema.scripts import running as scripts

    return scripts.run_file(engine, args.script, arguments, more_help=COMMAND.help_of_own_flags())


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", help="path of the script; can be relative to the YOLOv5 in use")
    parser.add_argument("arguments", nargs="*", default=[], help="arguments for the script")


COMMAND = Command(
    "run",
    "run your own script, or another script of YOLOv5, with the blocks available",
    _run,
    _add_flags,
    description="Run a Python script with the attention blocks available in YOLOv5.",
    epilog=_EPILOG,
    passes_all=True,
)
