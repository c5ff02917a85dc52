"""``yolov5-ema data stats``: how many, how large, how balanced; and whether a stride-4 head may pay."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.files import write_whole

if TYPE_CHECKING:
    from yolov5_ema.data.dataset import Dataset

SUMMARY = "images, boxes, sizes and classes of a data set; whether a stride-4 head may pay"

_ADVICE = {
    "likely": "Take a cfg with one: `yolov5-ema cfg --size s --head p2 --at neck --nc {nc} -o my.yaml`, "
    "or yolov5x-ema-tph.yaml, the largest.",
    "perhaps": "For the comparison: `yolov5-ema cfg --size s --head p2 --at neck --nc {nc} -o my.yaml`.",
    "unlikely": "",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``yolov5-ema data stats``."""
    parser = argparse.ArgumentParser(
        prog="yolov5-ema data stats",
        description="Look at a data set: images, boxes, sizes at a given image size, class balance.",
        epilog="The size of a box is the square root of its area in pixels, in an image scaled so that its longer "
        "side is imgsz, as YOLOv5 does. example: yolov5-ema data stats visdrone.yaml --imgsz 1280",
    )
    parser.add_argument("data", type=Path, metavar="DATA.yaml")
    parser.add_argument(
        "--imgsz",
        "--img",
        "--img-size",
        type=int,
        default=640,
        metavar="N",
        help="longer side (default: 640)",
    )
    parser.add_argument(
        "--split", nargs="+", choices=("train", "val", "test"), help="which (default: all that there are)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where the picture goes (default: runs/data/stats/NAME.png)",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw none")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the figures and draw the picture.

    Raises:
        UserError: the YAML, its images or a flag cannot be used, or a file cannot be written.
    """
    args = build_parser().parse_args(argv)
    if args.imgsz < 1:
        raise UserError(f"--imgsz must be at least 1, not {args.imgsz}")

    from yolov5_ema.data.problems import describe
    from yolov5_ema.data.stats import split_stats, table, verdict
    from yolov5_ema.data.stats_picture import check_picture, save_picture
    from yolov5_ema.upstream.data_yaml import open_dataset

    picture = args.picture or Path("runs/data/stats", args.data.with_suffix(".png").name)
    check_picture(picture)
    data = open_dataset(str(args.data))
    splits = list(dict.fromkeys(args.split or _splits_there(data)))
    if not splits:
        raise UserError(f"{args.data} names none of train, val, test")
    stats = [split_stats(data, split, args.imgsz) for split in splits]
    found = verdict(stats[0], args.imgsz)
    print(f"{args.data}, sizes at imgsz {args.imgsz}\n\n{table(data.names, stats)}\n")
    for split in stats:
        for line in describe(split.problems):
            print(line)
    print(f"{found.sentence} {_ADVICE[found.word].format(nc=len(data.names))}".rstrip())
    if args.json is not None:
        figures = {split.split: split.as_dict() for split in stats}
        content = {"data": str(args.data), "imgsz": args.imgsz, "names": data.names, "splits": figures}
        content["stride4"] = {"verdict": found.word, "because": found.sentence}
        write_whole(args.json, json.dumps(content, indent=1) + "\n", parents=True)
        print(f"{args.json} written")
    if not args.no_picture:
        save_picture(picture, args.data.name, data.names, stats, args.imgsz, found.sentence)
        print(f"{picture} drawn")
    return 0


def _splits_there(data: Dataset) -> list[str]:
    """All that the YAML names; but for test, which exports name whether they have it or not."""
    splits = data.splits
    if "test" in splits and len(splits) > 1:
        try:
            data.images("test")
        except ConfigError as error:
            print(f"without test: {error}\n")
            splits.remove("test")
    return splits
