"""``yolov5-ema paper figure1``: draw accuracy against parameters as in the paper, with your own runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from yolov5_ema.cli.command import Command, add_force, add_json, add_output, print_json
from yolov5_ema.errors import UserError


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Draw the figure, and print its points."""
    if args.only_runs and not args.runs:
        raise UserError("--only-runs: name runs with --runs")
    if args.output.suffix not in ("", ".png", ".svg"):
        raise UserError(
            f"-o {args.output}: a PNG and an SVG are written; give a name with one of these suffixes, or without one"
        )

    from yolov5_ema.files import check_outputs, whole_files
    from yolov5_ema.paper import figure1

    files = [args.output.with_suffix(".png"), args.output.with_suffix(".svg")]
    check_outputs(files, force=args.force)
    points = figure1.run_points(args.runs)
    if not args.only_runs:
        points = [*figure1.paper_points(plain=args.parameters == "plain"), *points]
    with whole_files(files) as drafts:
        figure1.draw(points, drafts)
    if args.json:
        found = [{**asdict(point), "mean": point.mean} for point in points]
        print_json({"points": found, "files": [str(file) for file in files]}, sys.stdout)
        return 0
    for point in points:
        whose = "paper" if point.from_paper else "own runs" if len(point.top1) > 1 else "own run"
        print(f"{whose:<9}{point.label:<28}{point.parameters:>9.3f} M  top-1 {point.mean:.2f} %")
    print(*files)
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        default=[],
        help="folders of `yolov5-ema classify train`",
    )
    parser.add_argument("--only-runs", action="store_true", help="leave out the points of the paper")
    parser.add_argument(
        "--parameters",
        choices=("printed", "plain"),
        default="printed",
        help="parameters of the paper's points: as the paper prints them, or all parameters of the models built here "
        "(default: printed)",
    )
    add_json(parser, "print the points as JSON")
    add_output(parser, "file to write, as PNG and as SVG (default: figure1.png)", default=Path("figure1.png"))
    add_force(parser)


COMMAND = Command(
    "paper figure1",
    "draw accuracy against parameters as PNG and SVG",
    _run,
    _add_flags,
    description="Draw the paper's Figure 1, top-1 accuracy on CIFAR-100 against parameters, as PNG and SVG. With "
    "--runs, add your own classifiers.",
    epilog="example: yolov5-ema paper figure1 --runs runs/classify/exp runs/classify/exp2 -o figure1.png",
)
