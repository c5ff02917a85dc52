"""``yolov5-ema paper``: the paper's tables and Figure 1, beside what is built and measured here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from yolov5_ema.errors import UserError

SUMMARY = "the paper's tables, figure by figure, and its Figure 1 with your runs"

_TABLES = ("1", "2", "3", "4")


def main(argv: Sequence[str]) -> int:
    """Run ``tables`` or ``figure1``."""
    args = _parser().parse_args(argv)
    return _tables(args) if args.command == "tables" else _figure1(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yolov5-ema paper",
        description="What can be checked of the paper (arXiv 2305.13563) without a data set.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    tables = commands.add_parser(
        "tables",
        help="build every model of Tables 1 to 4 and compare each figure with the paper's",
        description="Build every model of the paper's Tables 1 to 4 and print, figure by figure, the paper's, ours, "
        "and which way of counting gives the paper's. Accuracies are quoted. CPU, a minute or two.",
        epilog="example: yolov5-ema paper tables --table 1 4 --markdown -o tables.md",
    )
    tables.add_argument("--table", nargs="+", choices=_TABLES, default=list(_TABLES), help="default: all")
    form = tables.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    tables.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to a file instead")
    tables.add_argument("--force", action="store_true", help="replace the file that is there")

    figure = commands.add_parser(
        "figure1",
        help="draw accuracy against parameters as PNG and SVG",
        description="Draw the paper's Figure 1, top-1 accuracy on CIFAR-100 against parameters, as PNG and SVG; with "
        "--runs your own classifiers beside it.",
        epilog="example: yolov5-ema paper figure1 --runs runs/classify/exp runs/classify/exp2 -o figure1.png",
    )
    figure.add_argument(
        "--runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        default=[],
        help="folders of `yolov5-ema classify train`",
    )
    figure.add_argument("--only-runs", action="store_true", help="leave the paper's points out")
    figure.add_argument(
        "--parameters",
        choices=("printed", "plain"),
        default="printed",
        help="of the paper's points: as it prints them, or all of the built models (default: printed)",
    )
    figure.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("figure1.png"))
    figure.add_argument("--force", action="store_true", help="replace files that are there")
    return parser


def _tables(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from yolov5_ema.files import refuse_present, write_whole
    from yolov5_ema.paper import rendering
    from yolov5_ema.paper.printed import printed_tables
    from yolov5_ema.paper.tables import compare_tables

    if args.output is not None:
        refuse_present([args.output], args.force)
        if not args.output.parent.is_dir():  # before a minute's work
            raise UserError(f"-o {args.output}: there is no folder {args.output.parent}")
    chosen = [table for table in printed_tables() if table.table in args.table]
    total = sum(len(table.rows) for table in chosen)
    rows = list(tqdm(compare_tables(chosen), total=total, desc="models", unit="", leave=False, disable=None))
    if args.json:
        text = json.dumps(rendering.as_json(rows), indent=2)
    else:
        text = (rendering.as_markdown if args.markdown else rendering.as_text)(rows)
    if args.output is None:
        print(text)
        return 0
    write_whole(args.output, text + "\n")
    print(args.output)
    return 0


def _figure1(args: argparse.Namespace) -> int:
    if args.only_runs and not args.runs:
        raise UserError("--only-runs: name runs with --runs")
    if args.output.suffix not in ("", ".png", ".svg"):
        raise UserError(
            f"-o {args.output}: a PNG and an SVG are written; give a name that ends in one of these, or none"
        )

    from yolov5_ema.files import refuse_present, whole_files
    from yolov5_ema.paper import figure1

    files = [args.output.with_suffix(".png"), args.output.with_suffix(".svg")]
    refuse_present(files, args.force)
    points = figure1.run_points(args.runs)
    if not args.only_runs:
        points = [*figure1.paper_points(plain=args.parameters == "plain"), *points]
    with whole_files(files) as drafts:
        figure1.draw(points, drafts)
    for point in points:
        whose = "paper" if point.from_paper else "own runs" if len(point.top1) > 1 else "own run"
        print(f"{whose:<9}{point.label:<28}{point.parameters:>9.3f} M  top-1 {point.mean:.2f} %")
    print(*files)
    return 0
