"""``yolov5-ema train``: run YOLOv5's own script with the shim installed."""

from __future__ import annotations

import argparse
from dataclasses import replace

from yolov5_ema.cli._collector import paused
from yolov5_ema.cli._engines import add_engine_of_script, run_mode, words_for_ultralytics
from yolov5_ema.cli._yolov5 import add_init, check_init, show_help, start_yolov5
from yolov5_ema.cli.command import Command
from yolov5_ema.errors import UserError
from yolov5_ema.settings import Settings
from yolov5_ema.upstream.flags import given_flags


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Run YOLOv5's ``train``. The setting ``seed`` also works for releases that have no ``--seed``."""
    words = words_for_ultralytics("train", args, rest)
    if words is not None:
        if args.init is not None:
            raise UserError("--init works only with YOLOv5's train, not with ultralytics")
        return run_mode("train", words)
    show_help("train", rest, COMMAND)
    with paused():
        from yolov5_ema.engine.quirks import distributed
        from yolov5_ema.scripts import running as scripts
        from yolov5_ema.scripts import seeding

        distributed.check_devices()
        engine = start_yolov5()
    weights = given_flags(engine, "train", rest).get("weights")
    check_init(args.init, weights.value if weights is not None else None)
    chosen = replace(Settings.from_environment(), init=args.init) if args.init else Settings.from_environment()
    with chosen.exported(), seeding.seeded_training(engine, rest) as flags:
        scripts.run_script(engine, "train", flags, more_help=COMMAND.help_of_own_flags())
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_init(parser)
    add_engine_of_script(parser)


COMMAND = Command(
    "train",
    "train a detector: YOLOv5's own train, with all its flags",
    _run,
    _add_flags,
    passes_to="train",
)
