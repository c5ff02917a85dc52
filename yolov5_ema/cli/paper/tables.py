"""``yolov5-ema paper tables``: check the paper's Tables 1 to 4, figure by figure."""

from __future__ import annotations

import argparse
import json

from yolov5_ema.cli.command import Command, add_force, add_json, add_output, results_alone
from yolov5_ema.files import check_outputs, write_whole

_TABLES = ("1", "2", "3", "4")


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Build the models, and print or write the table."""
    from tqdm import tqdm

    from yolov5_ema.paper import rendering
    from yolov5_ema.paper.printed import printed_tables
    from yolov5_ema.paper.tables import compare_tables

    if args.output is not None:
        check_outputs([args.output], force=args.force)
    chosen = [table for table in printed_tables() if table.table in args.table]
    total = sum(len(table.rows) for table in chosen)
    silent = True if args.quiet else None
    with results_alone(args.json):
        rows = list(tqdm(compare_tables(chosen), total=total, desc="models", unit="", leave=False, disable=silent))
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


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", nargs="+", choices=_TABLES, default=list(_TABLES), help="tables (default: all)")
    form = parser.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    add_output(parser, "write to this file instead of printing")
    add_force(parser, "replace an existing file")


COMMAND = Command(
    "paper tables",
    "build every model of Tables 1 to 4 and compare each figure with the paper's",
    _run,
    _add_flags,
    description="Build every model of the paper's Tables 1 to 4 and print, for each figure, the paper's value, ours, "
    "and the way of counting that gives the paper's value. Accuracies are quoted. This takes a minute or two on a CPU.",
    epilog="example: yolov5-ema paper tables --table 1 4 --markdown -o tables.md",
)
