"""``yolov5-ema data visdrone``: the benchmark's archives into labels, COCO JSON and a data YAML."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.data._options import (
    add_options,
    check_options,
    counted,
    print_end,
    print_problems,
    refuse_nothing_left,
)

if TYPE_CHECKING:
    from yolov5_ema.data.conversion import SplitResult

SUMMARY = "VisDrone2019-DET's archives or folders into labels, COCO JSON and a data YAML"

_EPILOG = """\
SRC is any of the benchmark's archives (VisDrone2019-DET-train.zip, -val, -test-dev),
their unpacked folders, or a folder that holds such. It is never changed.

DIR gets a folder a split with images/, labels/ and annotations/ (the benchmark's own
text, which its own protocol is computed from), annotations/instances_SPLIT.json for
COCO's tools, and visdrone.yaml for `yolov5-ema train --data`. Run it again after an
interruption, or with another split: what is done is kept.

examples:
  yolov5-ema data visdrone ~/Downloads --out ../datasets/VisDrone
  yolov5-ema data visdrone VisDrone2019-DET-val.zip --out ../datasets/VisDrone --strict
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``yolov5-ema data visdrone``."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema data visdrone",
        description="Convert VisDrone2019-DET to what YOLOv5 trains on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SRC", help="archives or folders")
    add_options(parser)
    parser.add_argument(
        "--mask-ignored",
        action="store_true",
        help="grey ignored regions out of training images, and drop boxes that they hide to a half",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Convert, and say what came of it.

    Raises:
        UserError: no split found, the output cannot be written, or ``--strict`` and something is wrong.
    """
    args = build_parser().parse_args(argv)
    check_options(args)

    from yolov5_ema.data.visdrone import convert_visdrone

    done = convert_visdrone(
        args.sources,
        args.out,
        mask_ignored=args.mask_ignored,
        copy=args.copy,
        strict=args.strict,
        workers=args.workers,
        quiet=args.quiet,
    )
    if args.quiet:
        print(done.yaml_file or args.out)
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
    lines = [
        f"{head}, {counted(tallies['boxes'], 'box')}, {counted(tallies['background'], 'image')} without any"
    ]
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
