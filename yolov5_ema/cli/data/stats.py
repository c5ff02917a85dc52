"""``yolov5-ema data stats``: numbers, sizes and balance of objects, and whether a stride-4 head may help."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import (
    Command,
    add_image_size,
    add_json_or_file,
    add_output,
    check_at_least_one,
    is_bare_json,
    print_json,
    results_alone,
)
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import check_outputs, write_whole

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset

_ADVICE = {
    "likely": "Use a cfg with such a head: `yolov5-ema cfg --size s --head p2 --at neck --nc {nc} -o my.yaml`, "
    "or yolov5x-ema-tph.yaml, the largest.",
    "perhaps": "For the comparison: `yolov5-ema cfg --size s --head p2 --at neck --nc {nc} -o my.yaml`.",
    "unlikely": "",
}


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DATA.yaml")
    add_image_size(parser, "longer side in pixels (default: 640)")
    parser.add_argument("--split", nargs="+", choices=("train", "val", "test"), help="splits to look at (default: all)")
    add_json_or_file(parser)
    add_output(parser, "picture to write (default: runs/data/stats/NAME.png)", old=["--picture"])
    parser.add_argument("--no-picture", action="store_true", help="do not draw the picture")


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Print the figures and draw the picture."""
    _take_json_value_as_data(args)
    check_at_least_one(args, "imgsz")

    from yolov5_ema.data.problems import describe
    from yolov5_ema.data.stats import split_stats, table, verdict
    from yolov5_ema.data.stats_picture import check_picture, save_picture
    from yolov5_ema.upstream.data_yaml import open_dataset

    picture = args.output or Path("runs/data/stats", args.data.with_suffix(".png").name)
    check_picture(picture)
    files = [Path(args.json)] if args.json else []
    check_outputs(files if args.no_picture else [*files, picture], force=True, parents=True)
    with results_alone(is_bare_json(args)) as output:
        data = open_dataset(str(args.data))
        splits = list(dict.fromkeys(args.split or _splits_there(data)))
        if not splits:
            raise UserError(f"{args.data} has none of the splits train, val and test")
        stats = [split_stats(data, split, args.imgsz) for split in splits]
        found = verdict(stats[0], args.imgsz)
        content = {
            "data": str(args.data),
            "imgsz": args.imgsz,
            "names": data.names,
            "splits": {split.split: split.as_dict() for split in stats},
            "stride4": {"verdict": found.word, "because": found.sentence},
        }
        if is_bare_json(args):
            print_json(content, output)
        else:
            print(f"{args.data}, sizes at imgsz {args.imgsz}\n\n{table(data.names, stats)}\n")
        for split in stats:
            for line in describe(split.problems):
                print(line)
        print(f"{found.sentence} {_ADVICE[found.word].format(nc=len(data.names))}".rstrip())
        if args.json:
            write_whole(Path(args.json), json.dumps(content, indent=1) + "\n", parents=True)
            print(f"{args.json} written")
        if not args.no_picture:
            save_picture(picture, args.data.name, data.names, stats, args.imgsz, found.sentence)
            print(f"{picture} drawn")
    return 0


def _take_json_value_as_data(args: argparse.Namespace) -> None:
    """In ``stats --json DATA.yaml``, the argument after ``--json`` is the data set, not a file to write."""
    if args.data is None and args.json:
        args.data, args.json = args.json, ""
    if args.data is None:
        raise UserError("data stats: name a data YAML")
    args.data = Path(args.data)


def _splits_there(data: Dataset) -> list[str]:
    """All splits in the YAML, but test only if it has images: exported data sets often name a missing test split."""
    splits = data.splits
    if "test" in splits and len(splits) > 1:
        try:
            data.images("test")
        except ConfigError as error:
            print(f"test is left out: {error}\n")
            splits.remove("test")
    return splits


COMMAND = Command(
    "data stats",
    "print sizes and classes of a data set, and whether a stride-4 head is likely to help",
    _run,
    _add_flags,
    usage="%(prog)s DATA.yaml [flags]",
    description="Print statistics of a data set: images, boxes, their sizes at a given image size, class balance.",
    epilog="The size of a box is the square root of its area in pixels, after scaling the longer side of the image "
    "to --imgsz, as YOLOv5 does. example: yolov5-ema data stats visdrone.yaml --imgsz 1280",
)
