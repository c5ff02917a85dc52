"""``yolov5-ema data``: from a data set as it was downloaded to one that YOLOv5 trains on; one file a subcommand."""

from __future__ import annotations

from collections.abc import Sequence

from yolov5_ema.cli._subcommands import run_subcommand

SUMMARY = "convert VisDrone and COCO, slice images, look at a data set's sizes and classes"

COMMANDS = {
    "visdrone": "yolov5_ema.cli.data.visdrone",
    "coco": "yolov5_ema.cli.data.coco",
    "stats": "yolov5_ema.cli.data.stats",
    "slice": "yolov5_ema.cli.data.slice",
}


def main(argv: Sequence[str]) -> int:
    """Run one of the subcommands."""
    return run_subcommand("data", COMMANDS, argv)
