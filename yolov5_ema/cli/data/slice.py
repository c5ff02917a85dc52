"""``yolov5-ema data slice``: cut large images into overlapping windows for training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolov5_ema.cli.command import Command, add_output
from yolov5_ema.errors import UserError
from yolov5_ema.files import locked
from yolov5_ema.texts import counted, first_of, suggested

if TYPE_CHECKING:
    from yolov5_ema.data.slicing import SliceReport

_ABOUT = """\
Cuts images that are larger than a window, and their labels, into overlapping windows. An object at the border of a
window is labelled there if enough of it is inside. Images that are no larger than a window are linked unchanged.

train and val are cut. test stays whole, because results are reported on whole images. Use the mAP on the cut val only
to watch a training. For figures on whole images: yolov5-ema val --data ORIGINAL.yaml --slice SIZE --overlap SHARE

Many windows of a large image may be empty. In train, a share of them is kept as background (--keep-empty), always the
same ones; in val, all are kept. A window with only slivers of objects is neither labelled nor background, and is left
out.

A second run continues an interrupted one, and cuts changed images again.
"""


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Cut a data set. Returns 0 even if bad lines or images were skipped; they are counted and listed."""
    from yolov5_ema.data import slicing
    from yolov5_ema.upstream.data_yaml import open_dataset

    plan = slicing.SlicePlan(args.size, args.overlap, args.min_area_ratio, args.keep_empty)
    plan.check()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be 1 or more")
    dataset = open_dataset(args.data)
    file = dataset.file
    splits = _splits(args.split, dataset.splits, file)
    for split in splits:
        dataset.images(split)
    out = args.output or _default_out(file, args.size)
    slicing.prepare_folder(out, dataset, plan)
    with locked(out, f"another run is writing to {out}; wait until it has finished"):
        for split in splits:
            report = slicing.slice_split(dataset, split, out, plan, strict=args.strict, workers=args.workers)
            print(_summary(split, report))
            _report_bad(report)
            if not report.images:
                raise UserError(f"{file}: no image of {split} can be read")
        yaml_file = slicing.write_yaml(dataset, splits, out)
    print(_closing(yaml_file, file, args, splits, dataset.splits))
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA.yaml", help="data YAML of the data set to cut")
    parser.add_argument("--size", type=int, default=640, help="width and height of a window in pixels (default: 640)")
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.2,
        help="share of a window that the next one overlaps (default: 0.2)",
    )
    add_output(parser, "folder to write (default: DATA-sliced-SIZE next to the YAML)", old=["--out"], metavar="DIR")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "val", "test"),
        help="splits to cut (default: train val); the images of other splits stay whole and are not copied",
    )
    parser.add_argument(
        "--min-area-ratio",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="label a cut object if at least this share of its box is inside the window (default: 0.1)",
    )
    parser.add_argument(
        "--keep-empty",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the train windows without objects that is kept as background (default: 0.1)",
    )
    parser.add_argument("--strict", action="store_true", help="stop at a bad label line or image")
    parser.add_argument("--workers", type=int, help="threads (default: one per core)")


def _splits(wanted: Sequence[str] | None, there: Sequence[str], file: Path) -> list[str]:
    if wanted is None:
        chosen = [split for split in ("train", "val") if split in there]
        if not chosen:
            raise UserError(f"{file}: has neither train nor val; say what to cut with --split")
        return chosen
    missing = [split for split in wanted if split not in there]
    if missing:
        raise UserError(f"--split {missing[0]}: {file} has {', '.join(there) or 'no splits'}")
    return [split for split in ("train", "val", "test") if split in wanted]


def _default_out(file: Path, size: int) -> Path:
    """A folder next to the YAML; for a shipped YAML, one in the working directory."""
    from yolov5_ema.resources import data_dir

    folder = file.parent if file.resolve().parent != data_dir().resolve() else Path()
    return folder / f"{file.stem}-sliced-{size}"


def _summary(split: str, report: SliceReport) -> str:
    windows = counted(report.written + report.background, "window")
    parts = [f"{split}: {counted(report.images, 'image')} to {windows}"]
    parts.append(counted(report.objects, "object"))
    parts.append(f"{counted(report.background, 'window')} of background")
    if report.whole:
        parts.append(f"{counted(report.whole, 'image')} no larger than a window")
    if report.left_out:
        parts.append(f"{counted(report.left_out, 'empty window')} left out")
    if report.slivers:
        parts.append(f"{counted(report.slivers, 'window')} with only slivers left out")
    if report.skipped:
        parts.append(f"{counted(report.skipped, 'image')} done already")
    return ", ".join(parts)


def _report_bad(report: SliceReport) -> None:
    for what, fate, bad in (
        ("label line", "skipped, or cut off at the border", report.bad_lines),
        ("image", "skipped", report.bad_images),
    ):
        if bad:
            print(f"  {counted(len(bad), what)} {fate}:", *first_of([str(one) for one in bad], 5), sep="\n    ")


def _closing(yaml_file: Path, source: Path, args: argparse.Namespace, cut: Sequence[str], there: Sequence[str]) -> str:
    lines = [str(yaml_file)]
    whole = [split for split in there if split not in cut]
    if whole:
        lines.append(f"{' and '.join(whole)}: not cut; the YAML points to the images of {source}")
    if "val" in cut:
        lines.append(
            "val now consists of windows: use its mAP only to watch a training. For whole images: "
            + suggested("val", "--data", source, "--slice", args.size, "--overlap", f"{args.overlap:g}")
        )
    return "\n".join(lines)


COMMAND = Command(
    "data slice",
    "cut the images and labels of a data set into overlapping windows for training",
    _run,
    _add_flags,
    description=_ABOUT,
)
