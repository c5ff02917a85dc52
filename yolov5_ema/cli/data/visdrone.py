"""``yolov5-ema data visdrone``: convert the benchmark's archives into labels, COCO JSON and a data YAML."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import Command, check_at_least_one
from yolov5_ema.cli.data._options import add_options, boxes_of, conclude, dropped, images_of
from yolov5_ema.texts import counted

if TYPE_CHECKING:
    from yolov5_ema.data.conversion import SplitResult

_DROPPED = {
    "clipped": ("box", "cut off at the border"),
    "no_area": ("box", "of no area left out"),
    "duplicates": ("repeated box", "left out"),
    "hidden": ("box", "in greyed regions left out"),
}
_EPILOG = """\
SRC is any of the benchmark's archives (VisDrone2019-DET-train.zip, -val, -test-dev),
their unpacked folders, or a folder that contains some of these. SRC is never changed.

DIR gets, for each split, a folder with images/, labels/ and annotations/ (the text
files of the benchmark, which its protocol needs). It also gets
annotations/instances_SPLIT.json for COCO's tools, and visdrone.yaml for
`yolov5-ema train --data`. Run the command again after an interruption, or to add
another split: finished work is kept.

examples:
  yolov5-ema data visdrone ~/Downloads -o ../datasets/VisDrone
  yolov5-ema data visdrone VisDrone2019-DET-val.zip -o ../datasets/VisDrone --strict
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SRC", help="archives or folders")
    add_options(parser)
    parser.add_argument(
        "--mask-ignored",
        action="store_true",
        help="fill ignored regions of training images with grey, and drop boxes that they hide by half or more",
    )


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Convert, and print a summary."""
    check_at_least_one(args, "workers")

    from yolov5_ema.data.visdrone import convert_visdrone

    done = convert_visdrone(
        args.sources,
        args.output,
        mask_ignored=args.mask_ignored,
        copy=args.copy,
        strict=args.strict,
        workers=args.workers,
        quiet=args.quiet,
    )
    return conclude(done, args, _summary)


def _summary(result: SplitResult) -> str:
    if not result.annotated:
        use = "it can be detected on" if result.split == "test" else "it is not in the data YAML"
        return f"{images_of(result)}, no annotations: no labels and no JSON; {use}"
    tallies = result.tallies
    kept = f"{counted(tallies['regions'], 'ignored region')}, {tallies['others']:,} 'others', "
    kept += f"{counted(tallies['score0'], 'object')} of score 0"
    lines = [f"{images_of(result)}, {boxes_of(result)}", f"  kept for evaluation only: {kept}"]
    return "\n".join([*lines, *dropped(result, _DROPPED)])


COMMAND = Command(
    "data visdrone",
    "convert VisDrone2019-DET's archives or folders into labels, COCO JSON and a data YAML",
    _run,
    _add_flags,
    description="Convert VisDrone2019-DET into a data set that YOLOv5 trains on.",
    epilog=_EPILOG,
)
