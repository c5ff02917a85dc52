"""Flags and messages that are shared by the converters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import add_output
from yolov5_ema.errors import UserError
from yolov5_ema.texts import counted, suggested

if TYPE_CHECKING:
    from yolov5_ema.data.conversion import Conversion, SplitResult


_NO_BOXES = ("crowds", "no_area", "others", "score0", "regions", "hidden")
"""The tallies of annotations that give no box."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every converter."""
    add_output(parser, "folder to write", old=["--out"], metavar="DIR", required=True)
    parser.add_argument("--copy", action="store_true", help="copy images instead of linking them where possible")
    parser.add_argument("--strict", action="store_true", help="fail with exit code 2 if anything would be left out")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")


def images_of(result: SplitResult) -> str:
    """The beginning of a split's summary: its name and its number of images."""
    before = f" ({result.done_before:,} done before)" if result.done_before else ""
    return f"{result.split}: {counted(result.tallies['images'], 'image')}{before}"


def boxes_of(result: SplitResult) -> str:
    """The numbers of boxes, and of images without any."""
    tallies = result.tallies
    return f"{counted(tallies['boxes'], 'box')}, {counted(tallies['background'], 'image')} without any"


def dropped(result: SplitResult, words: Mapping[str, tuple[str, str]]) -> list[str]:
    """A line with those of these tallies that are not 0, if there are any; each has a noun and the words after it."""
    tallies = result.tallies
    parts = [f"{counted(tallies[key], noun)} {rest}" for key, (noun, rest) in words.items() if tallies[key]]
    return [f"  {', '.join(parts)}"] if parts else []


def conclude(done: Conversion, args: argparse.Namespace, summary: Callable[[SplitResult], str]) -> int:
    """Print what was done, and return the exit code; with ``--quiet`` print only the file or folder.

    Raises:
        UserError: see `_refuse_nothing_left`.
    """
    from yolov5_ema.data.problems import describe

    if args.quiet:
        print(done.yaml_file or args.output)
    for result in () if args.quiet else done.splits:
        print(*(summary(result), *describe(result.problems)), sep="\n")
    _refuse_nothing_left(done)
    if not args.quiet:
        _print_end(done)
    return 0


def _refuse_nothing_left(done: Conversion) -> None:
    """Refuse a conversion with a split that has no image, or has annotations but no box to train on."""
    for result in done.splits:
        tallies = result.tallies
        rows = [problem for problem in result.problems if problem.kind in ("line", "annotation")]
        lost = len(rows) + sum(tallies[key] for key in _NO_BOXES)
        if tallies["images"] and (tallies["boxes"] or not result.annotated or not lost):
            continue
        what = "box" if tallies["images"] else "image"
        where = f"; {done.report} lists everything that was left out" if done.report else ""
        raise UserError(f"{result.split}: no {what} is left, so it cannot be trained on{where}")


def _print_end(done: Conversion) -> None:
    """Print notes and the next command."""
    for note in done.notes:
        print(note)
    if done.report is not None:
        print(f"Everything that was left out is listed in {done.report}")
    if done.yaml_file is None:
        print("No data YAML was written: there is neither a split with annotations nor a test split")
    else:
        print(f"{done.yaml_file} written. Next: {suggested('data stats', done.yaml_file)}")
