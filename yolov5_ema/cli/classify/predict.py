"""``yolov5-ema classify predict``: print the most likely classes of images."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolov5_ema.cli.classify._options import load_weights, prepare
from yolov5_ema.cli.command import Command, add_device, add_run_folder, add_switch_off
from yolov5_ema.errors import UserError
from yolov5_ema.files import free_names, write_whole
from yolov5_ema.runs import run_folder
from yolov5_ema.texts import counted, first_of

if TYPE_CHECKING:
    from yolov5_ema.classification.checkpoints import Classifier

_EPILOG = """\
Prints one line for each image, and writes predictions.json and predictions.csv. Exit codes: 0; 1 if some images could
not be read (they are listed); 2 for a user's mistake, or if no image could be read.
"""

Row = dict[str, Any]


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    """Predict. Returns 1 if some images could not be read."""
    prepare("timm")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: must be 1 or more")
    files = list(dict.fromkeys(file for source in args.source for file in _files(source)))
    classifier = load_weights(args.weights, args.device)
    folder = nullcontext() if args.no_save else run_folder(args.project, args.name, args.exist_ok, parts=["labels"])
    with folder as place:
        rows = _shown_rows(classifier, files, args.batch)
        bad = [row for row in rows if "error" in row]
        if len(bad) == len(rows):
            raise UserError(f"none of {counted(len(rows), 'file')} can be read; {bad[0]['image']} {bad[0]['error']}")
        if place is not None:
            _save(place, rows, args.save_txt)
    if bad:
        print(f"classify predict: {len(bad)} of {counted(len(rows), 'file')} could not be read:", file=sys.stderr)
        lines = [f"  {row['image']}: {row['error']}" for row in bad]
        print(*first_of(lines, 20, "  and {} more"), sep="\n", file=sys.stderr)
    return 1 if bad else 0


def _shown_rows(classifier: Classifier, files: Sequence[Path], batch: int) -> list[Row]:
    """A row for each file; those of images that can be read are printed as they come."""
    rows = []
    for row in _predict(classifier, files, batch):
        rows.append(row)
        if "error" not in row:
            print(_line(row), flush=True)
    return rows


def _files(source: str) -> list[Path]:
    """The images of a path, a folder or a glob pattern."""
    from yolov5_ema.classification.images import SUFFIXES

    place = Path(source).expanduser()
    if place.is_dir():
        found = sorted(
            file for file in place.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not found:
            below = shlex.quote(f"{source}/**/*.jpg")
            raise UserError(f"--source {source}: no images directly in this folder; for its subfolders: {below}")
        return found
    if place.exists() or place.is_symlink():
        return [place]
    matches = sorted(Path(match) for match in glob.glob(str(place), recursive=True))
    if not matches:
        raise UserError(f"--source {source}: no such file or folder, and no file matches it as a pattern")
    return [match for match in matches if not match.is_dir()]


def _predict(classifier: Classifier, files: Sequence[Path], batch: int) -> Iterator[Row]:
    """Yield one row for each file, in order."""
    import torch

    from yolov5_ema.classification.images import UnreadableImage, read_image

    for start in range(0, len(files), batch):
        rows: list[Row] = []
        tensors = []
        for file in files[start : start + batch]:
            row: Row = {"image": _shown(file)}
            rows.append(row)
            try:
                tensors.append(classifier.prepare(read_image(file)))  # (1, 3, imgsz, imgsz)
            except UnreadableImage as error:
                row["error"] = str(error)
        if tensors:
            with torch.inference_mode():
                logits = classifier.model(torch.cat(tensors)).float()  # (N, classes)
            shares = logits.softmax(1).cpu()
            readable = (row for row in rows if "error" not in row)
            for row, share in zip(readable, shares):
                best = share.topk(min(5, len(classifier.names)))
                row["predictions"] = [
                    {"class": index, "name": classifier.names[index], "confidence": confidence}
                    for confidence, index in zip(best.values.tolist(), best.indices.tolist())
                ]
        yield from rows


def _shown(file: Path) -> str:
    """A path as text that can be printed and written everywhere."""
    return str(file).encode("utf-8", "replace").decode()


def _line(row: Row) -> str:
    best = ", ".join(f"{one['name']} {one['confidence']:.2f}" for one in row["predictions"])
    return f"{row['image']}: {best}"


def _save(folder: Path, rows: Sequence[Row], has_texts: bool) -> None:
    write_whole(folder / "predictions.json", json.dumps(rows, indent=1) + "\n")
    write_whole(folder / "predictions.csv", _as_csv(rows))
    if has_texts:
        _save_texts(folder / "labels", rows)
    print(f"{folder / 'predictions.json'} and .csv{', labels/*.txt' if has_texts else ''}")


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "name", "confidence"))
    for row in rows:
        for rank, one in enumerate(row.get("predictions", []), start=1):
            writer.writerow((row["image"], rank, one["class"], one["name"], f"{one['confidence']:.6f}"))
    return text.getvalue()


def _save_texts(folder: Path, rows: Sequence[Row]) -> None:
    """Write one file for each image, with a line such as ``0.83 cat`` for each class, as YOLOv5's script does."""
    taken: set[str] = set()
    for row in rows:
        if "error" in row:
            continue
        # two pictures of one name may come from two folders
        name = next(name for name in free_names(Path(row["image"]).stem) if name not in taken)
        taken.add(name)
        lines = [f"{one['confidence']:.2f} {one['name']}\n" for one in row["predictions"]]
        write_whole(folder / f"{name}.txt", "".join(lines), parents=True)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, metavar="best.pt")
    parser.add_argument("--source", nargs="+", required=True, metavar="PLACE", help="images, folders, or quoted globs")
    parser.add_argument("--batch", "--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--save-txt", action="store_true", help="also write one text file for each image")
    add_switch_off(parser, "--no-save", "do not write files", old="--nosave")
    add_device(parser)
    add_run_folder(parser, "runs/classify-predict")


COMMAND = Command(
    "classify predict",
    "print the five most likely classes of each image; also as JSON and CSV",
    _run,
    _add_flags,
    description="Classify images with a classifier that 'classify train' trained.",
    epilog=_EPILOG,
)
