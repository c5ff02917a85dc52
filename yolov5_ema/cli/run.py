"""``yolov5-ema run``: any script, with the shim installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import load_plugins

SUMMARY = "run a script of your own, or another one of YOLOv5's, with the blocks known"


def main(argv: Sequence[str]) -> int:
    """Run a Python file as ``python FILE …`` would, under the shim."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema run",
        description="Run a Python script with the attention blocks known to YOLOv5.",
        epilog="examples:\n  yolov5-ema run my_experiment.py --lr 0.1\n  yolov5-ema run segment/train.py --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", help="path of the script; also one relative to the YOLOv5 in use")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script itself gets")
    args = parser.parse_args(argv)

    from yolov5_ema.engine import scripts, shim

    load_plugins()
    engine = shim.install()
    return scripts.run_file(engine, args.script, args.arguments)
