"""``yolov5-ema data visdrone``: convert the benchmark's archives into labels, COCO JSON and a data YAML."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import Command, check_at_least_one
from yolov5_ema.cli.data._options import (
    add_options,
    counted,
    print_end,
    print_problems,
    refuse_nothing_left,
)

if TYPE_CHECKING:
    from yolov5_ema.data.conversion import SplitResult

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
    """Convert, and print a summary.

    Raises:
        UserError: no split was found, the output cannot be written, or with ``--strict`` something would be left out.
    """
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
    if args.quiet:
        print(done.yaml_file or args.output)
        refuse_nothing_left(done)
        return 0
    for result in done.splits:
        print(_summary(result))
        print_problems(result)
    refuse_nothing_left(done)
    print_end(done)
    return 0


def _summary(result: SplitResult) -> str:
    tallies = result.tallies
    before = f" ({result.done_before:,} done before)" if result.done_before else ""
    head = f"{result.split}: {counted(tallies['images'], 'image')}{before}"
    if not result.annotated:
        use = "it can be detected on" if result.split == "test" else "it is not in the data YAML"
        return f"{head}, no annotations: no labels and no JSON; {use}"
    lines = [f"{head}, {counted(tallies['boxes'], 'box')}, {counted(tallies['background'], 'image')} without any"]
    kept = [("regions", "ignored regions"), ("others", "'others'"), ("score0", "objects of score 0")]
    lines.append("  kept for evaluation only: " + ", ".join(f"{tallies[key]:,} {word}" for key, word in kept))
    dropped = [
        ("clipped", "boxes cut off at the border"),
        ("no_area", "boxes of no area left out"),
        ("duplicates", "repeated boxes left out"),
        ("hidden", "boxes in greyed regions left out"),
    ]
    words = [f"{tallies[key]:,} {word}" for key, word in dropped if tallies[key]]
    return "\n".join(lines + [f"  {', '.join(words)}"] * bool(words))


COMMAND = Command(
    "data visdrone",
    "convert VisDrone2019-DET's archives or folders into labels, COCO JSON and a data YAML",
    _run,
    _add_flags,
    description="Convert VisDrone2019-DET into a data set that YOLOv5 trains on.",
    epilog=_EPILOG,
)
