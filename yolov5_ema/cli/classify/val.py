"""``yolov5-ema classify val``: evaluate a classifier on a split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.classify._options import (
    DATA_HELP,
    add_workers,
    check_same_names,
    load_weights,
    prepare,
    worker_count,
)
from yolov5_ema.cli.command import Command, add_device, add_run_folder
from yolov5_ema.errors import UserError
from yolov5_ema.texts import aligned, counted, first_of

if TYPE_CHECKING:
    from yolov5_ema.classification.evaluation import Evaluation

_MOST_ROWS = 30

_EPILOG = """\
Writes metrics.json and confusion.png. Exit codes: 0; 1 if some images could not be read (they are listed); 2 for a
user's mistake.
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate. Returns 1 if some images could not be read."""
    prepare("timm", "torchmetrics")
    from yolov5_ema.classification.datasets import open_data
    from yolov5_ema.classification.evaluation import evaluate, write_evaluation
    from yolov5_ema.runs import run_folder

    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: must be 1 or more")
    workers = worker_count(args.workers)
    classifier = load_weights(args.weights, args.device)
    spec = args.data or classifier.record.get("settings", {}).get("data")
    if not isinstance(spec, str):
        raise UserError(f"{args.weights} does not say what it was trained on; name it with --data")
    data = open_data(spec, classifier.imgsz, (args.split,), download=args.download)
    check_same_names(data.names, classifier.names, spec, args.weights)
    with run_folder(args.project, args.name, args.exist_ok) as folder:
        found = evaluate(
            classifier,
            data.splits[args.split],
            batch=args.batch,
            workers=workers,
            progress=sys.stderr.isatty() and not args.quiet,
        )
        parameters = sum(parameter.numel() for parameter in classifier.model.parameters())
        write_evaluation(found, classifier.names, classifier.record, parameters, folder)
    print(_table(found, classifier.names))
    print(f"{folder / 'metrics.json'} and confusion.png")
    return _report_unreadable(found)


def _table(found: Evaluation, names: list[str]) -> str:
    rows = found.by_class(names)
    shown, note = rows, []
    if len(rows) > _MOST_ROWS:
        with_images = [row for row in rows if row["images"]]
        shown = sorted(with_images, key=lambda row: row["top1"])[:10]
        note = [f"the {len(shown)} worst of {len(rows)} classes; metrics.json has all:"]
    table = [("class", "images", "top-1", "top-5")]
    table.append(("all", str(found.images), f"{found.top1:.2%}", f"{found.top5:.2%}"))
    for row in shown:
        accuracy = "-" if row["top1"] is None else f"{row['top1']:.2%}"
        table.append((row["name"], str(row["images"]), accuracy, ""))
    head, every, *classes = aligned(table).split("\n")
    return "\n".join([head, every, *note, *classes])


def _report_unreadable(found: Evaluation) -> int:
    if not found.unreadable:
        return 0
    lines = [f"  {name}: {reason}" for name, reason in found.unreadable]
    print(f"{counted(len(lines), 'image')} could not be read, left out:", file=sys.stderr)
    print(*first_of(lines, 20, "  and {} more; metrics.json lists all"), sep="\n", file=sys.stderr)
    return 1


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, metavar="best.pt")
    parser.add_argument("--data", metavar="DATA", help=f"{DATA_HELP} (default: what it was trained on)")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="(default: val)")
    parser.add_argument("--download", action="store_true", help="download CIFAR-100 if it is missing")
    parser.add_argument("--batch", "--batch-size", type=int, default=128, metavar="N", help="(default: 128)")
    add_device(parser)
    add_workers(parser)
    add_run_folder(parser, "runs/classify-val")


COMMAND = Command(
    "classify val",
    "print top-1, top-5, accuracy by class and confusions of a classifier",
    _run,
    _add_flags,
    description="Evaluate a classifier that 'classify train' trained.",
    epilog=_EPILOG,
)
