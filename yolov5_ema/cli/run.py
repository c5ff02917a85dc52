"""``yolov5-ema run``: any script, with the shim installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yolov5_ema.cli._yolov5 import load_plugins

SUMMARY = "run a script of your own, or another one of YOLOv5's, with the blocks known"

_EPILOG = """\
All that stands behind a script of your own goes to it as it is, a first -- alone excepted; flags of yolov5-ema stand
before the script. Scripts of YOLOv5 take them anywhere.

examples:
  yolov5-ema run my_experiment.py --lr 0.1
  yolov5-ema run --plugin my_blocks my_experiment.py --conflicts none
  yolov5-ema run segment/train.py --help
"""


def main(argv: Sequence[str]) -> int:
    """Run a Python file as ``python FILE …`` would, under the shim."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema run",
        description="Run a Python script with the attention blocks known to YOLOv5.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", help="path of the script; also one relative to the YOLOv5 in use")
    parser.add_argument("arguments", nargs="*", default=[], help="what the script itself gets")
    given = _without_separator(argv)
    script = parser.parse_args(given[:1]).script

    from yolov5_ema.engine import shim
    from yolov5_ema.scripts import running as scripts

    load_plugins()
    engine = shim.install()
    return scripts.run_file(engine, script, _without_separator(given[1:]))


def _without_separator(argv: Sequence[str]) -> list[str]:
    return list(argv[1:] if argv[:1] == ["--"] else argv)
