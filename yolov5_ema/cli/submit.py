"""``yolov5-ema submit``: write detections in the format of the VisDrone benchmark."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli._detections import Request, add_source, check_source, detect_split, words_of_val
from yolov5_ema.cli.command import Command, add_output
from yolov5_ema.data.image_names import keys_of_images, named_once
from yolov5_ema.errors import UserError
from yolov5_ema.files import check_new_folder
from yolov5_ema.texts import counted

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset
    from yolov5_ema.evaluation.records import Predictions

MOST_ROWS = 500

_EPILOG = f"""\
Writes a text file for each image of the split, best detection first, with at most {MOST_ROWS} rows:
left,top,width,height,score,category,-1,-1 in pixels; categories are counted from 1. No ground truth is needed.

With --weights, all other flags go to YOLOv5's own val: --img, --batch-size, --conf-thres, --iou-thres, --device …;
--slice and --overlap work as in 'yolov5-ema val'. Exit code 1 if some images cannot be read; they are listed.

examples:
  yolov5-ema submit --data visdrone.yaml --weights best.pt --img 1280 -o results
  yolov5-ema submit --data visdrone.yaml --predictions runs/val/exp/best_predictions.json -o results
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the folder. Returns 1 if an image could not be read."""
    _check(args, rest)
    from yolov5_ema.evaluation.predictions import write_visdrone_results

    found, lost = _by_weights(args, rest) if args.weights else (_by_predictions(args), 0)
    rows = write_visdrone_results(args.output, found, args.max_det)
    print(f"{args.output}: {counted(len(found), 'file')}, {counted(rows, 'detection')}")
    return 1 if lost else 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--data", required=True, metavar="YAML", help="data YAML that lists the images of the split")
    parser.add_argument("--task", default="test", choices=("train", "val", "test"), help="split (default: test)")
    parser.add_argument(
        "--category-ids",
        default="auto",
        choices=("auto", "index", "one-based"),
        help="whether classes in --predictions are counted from 0 or from 1 (default: from 0 if that fits)",
    )
    add_output(parser, "folder to write", metavar="FOLDER", required=True)
    parser.add_argument(
        "--max-det", type=int, default=MOST_ROWS, help=f"rows per image (default and maximum: {MOST_ROWS})"
    )


def _check(args: argparse.Namespace, rest: Sequence[str]) -> None:
    check_source(args, rest)
    if not 1 <= args.max_det <= MOST_ROWS:
        raise UserError(f"--max-det must be 1 to {MOST_ROWS}, not {args.max_det}")
    check_new_folder(args.output)


def _by_weights(args: argparse.Namespace, rest: Sequence[str]) -> tuple[dict[str, Predictions], int]:
    """The detections, by the images' keys, and the number of images that could not be read (without detections)."""
    from yolov5_ema.evaluation.judged import not_judged, words_of
    from yolov5_ema.evaluation.records import Predictions
    from yolov5_ema.scripts.odd_labels import has_odd_images

    request = Request(
        args.weights, args.data, args.task, args.max_det, rest, args.engine, args.runtime, args.int8, COMMAND.parser()
    )
    engine, dataset = request.opened()
    if request.is_single_class(engine):
        raise UserError("--single-cls: leave it out; the benchmark needs VisDrone's classes")
    images = _checked(dataset, args.task)
    with tempfile.TemporaryDirectory() as folder, words_of_val(hidden=args.quiet):
        keep_odd = has_odd_images(dataset, args.task)
        found = detect_split(request, engine, dataset, Path(folder), keep_odd=keep_odd)
    left_out = not_judged(images, found.images)
    if left_out:
        print(f"yolov5-ema: {words_of(left_out, len(images))}\n  Their files are empty", file=sys.stderr)
    every = [*found.images, *(image for image, _ in left_out)]
    return {key: Predictions.of(found.of(image)) for image, key in keys_of_images(every).items()}, len(left_out)


def _by_predictions(args: argparse.Namespace) -> dict[str, Predictions]:
    from yolov5_ema.evaluation.predictions import read_predictions
    from yolov5_ema.evaluation.sources import image_set
    from yolov5_ema.upstream.data_yaml import open_dataset

    dataset = open_dataset(args.data)
    images = image_set(_checked(dataset, args.task), dataset.names, str(dataset.file))
    return read_predictions(args.predictions, images, missing_as_empty=True, category_ids=args.category_ids)


def _checked(dataset: Dataset, task: str) -> list[Path]:
    """The images of the split; refused if two would have the same file of results, or with other classes."""
    from yolov5_ema.data.visdrone_format import CLASSES

    names = dataset.names
    if tuple(names) != CLASSES:
        raise UserError(f"the benchmark's classes are {', '.join(CLASSES)} in this order, not {', '.join(names)}")
    images = dataset.images(task)
    named_once(images, "The benchmark takes one file of results of that name")
    return images


COMMAND = Command(
    "submit",
    "write detections in the format of the VisDrone benchmark",
    _run,
    _add_flags,
    description="Write detections in the format of VisDrone-DET submissions.",
    epilog=_EPILOG,
    passes_to="val",
)
