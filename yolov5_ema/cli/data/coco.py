"""``yolov5-ema data coco``: convert an instances JSON into YOLO labels and a data YAML."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import Command, check_at_least_one
from yolov5_ema.cli.data._options import add_options, boxes_of, conclude, dropped, images_of

if TYPE_CHECKING:
    from yolov5_ema.data.conversion import SplitResult

_DROPPED = {
    "crowds": ("crowd", "left out"),
    "clipped": ("box", "cut off at the border"),
    "no_area": ("box", "of no area left out"),
    "duplicates": ("repeated box", "left out"),
}
_EPILOG = """\
SRC is a folder with annotations/instances_*.json and the images in NAME/ or
images/NAME/ (such as train2017, val2017), or one JSON with --images. SRC is never
changed.

Crowds are left out. The 80 classes of COCO are in the order of YOLOv5's coco.yaml,
other classes in the order of their category ids.

examples:
  yolov5-ema data coco ../coco -o ../datasets/coco
  yolov5-ema data coco valid/_annotations.coco.json --images valid --split val -o mine
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a folder, or one instances JSON")
    add_options(parser)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of the images, if SRC is a JSON")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="split of the JSON, if its name does not say it"
    )


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Convert, and print a summary."""
    check_at_least_one(args, "workers")

    from yolov5_ema.data.coco import convert_coco

    done = convert_coco(
        args.source,
        args.output,
        images=args.images,
        split=args.split,
        copy=args.copy,
        strict=args.strict,
        workers=args.workers,
        quiet=args.quiet,
    )
    return conclude(done, args, _summary)


def _summary(result: SplitResult) -> str:
    return "\n".join([f"{images_of(result)}, {boxes_of(result)}", *dropped(result, _DROPPED)])


COMMAND = Command(
    "data coco",
    "convert COCO, or a data set in its format, into YOLO labels and a data YAML",
    _run,
    _add_flags,
    description="Convert a data set in COCO's format into one that YOLOv5 trains on.",
    epilog=_EPILOG,
)
