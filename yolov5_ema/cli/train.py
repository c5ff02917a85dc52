"""``yolov5-ema train``: YOLOv5's own script under the shim."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from yolov5_ema.cli._yolov5 import load_plugins
from yolov5_ema.errors import UserError
from yolov5_ema.settings import INITS, Settings

SUMMARY = "train a detector: YOLOv5's own train, with every flag of it"


def main(argv: Sequence[str]) -> int:
    """Run YOLOv5's ``train``; the setting ``seed`` counts also where YOLOv5 has no ``--seed``."""
    own, rest = _own_flags().parse_known_args(argv)
    from yolov5_ema.engine import shim
    from yolov5_ema.engine.quirks import distributed
    from yolov5_ema.scripts import leash, seeding
    from yolov5_ema.scripts import running as scripts
    from yolov5_ema.upstream.flags import given_flags

    distributed.check_devices()
    leash.end_with_parent()
    load_plugins()
    engine = shim.install()
    weights = given_flags(engine, "train", rest).get("weights")
    if own.init == "identity" and weights is not None and weights.value == "":
        raise UserError("--init identity is for pretrained --weights: from scratch there is nothing to keep")
    chosen = replace(Settings.from_environment(), init=own.init) if own.init else Settings.from_environment()
    with chosen.exported(), seeding.seeded_training(engine, rest) as flags:
        scripts.run_script(engine, "train", flags, more_help=_own_flags().format_help())
    return 0


def _own_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yolov5-ema train", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS
    )
    parser.add_argument(
        "--init",
        choices=INITS,
        help="how attention blocks start that the --weights lack: identity, so that they change nothing at first",
    )
    return parser
