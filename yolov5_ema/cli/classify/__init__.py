"""``yolov5-ema classify``: image classifiers with attention blocks; one file a subcommand."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._subcommands import run_subcommand

SUMMARY = "train, evaluate and use image classifiers with attention blocks (CIFAR-100, ImageNet)"

COMMANDS = {
    "train": "yolov5_ema.cli.classify.train",
    "val": "yolov5_ema.cli.classify.val",
    "predict": "yolov5_ema.cli.classify.predict",
}


def main(argv: Sequence[str]) -> int:
    """Run one of the subcommands."""
    return run_subcommand("classify", COMMANDS, argv)
