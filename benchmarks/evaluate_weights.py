"""Measures ``yolov5-ema evaluate`` with all protocols, in several runtimes, against YOLOv5's own val alone.

Whole commands run in turns on the images of a data set's split, repeated if there are too few; see ``predict.py`` for
what is measured and how. AP of all protocols is compared with that of torch.

    python benchmarks/evaluate_weights.py --weights best.pt --data bccd.yaml --save
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
from pathlib import Path

import yaml
from predict import FEW, add_flags, described, report, rows_of, timed
from training import busy_process

from yolov5_ema.upstream.data_yaml import open_dataset

RUNTIMES = ("auto", "onnx", "openvino", "torch")
CANDIDATES = {
    "val": ("val", "--name", "val", "--exist-ok"),
    **{
        f"evaluate --runtime {name}": ("evaluate", "--runtime", name, "--name", name, "--exist-ok", "--no-plots")
        for name in RUNTIMES
    },
}


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name, busy_process() if args.busy else contextlib.nullcontext():
        folder = Path(name, "run")
        folder.mkdir()
        weights = args.weights
        flags = {
            count: (
                "--weights",
                str(weights.resolve()),
                "--img",
                str(args.img),
                "--data",
                str(repeated(args, folder, count)),
            )
            for count in (FEW, args.images)
        }
        candidates = {
            way: words for way, words in CANDIDATES.items() if "runtime" not in way or runtime(way) in args.only
        }
        found = rows_of(timed(candidates, flags, args.rounds, folder))
        differences = {way: difference(folder, way) for way in map(runtime, candidates) if way not in ("val", "torch")}
    rows = {(weights.name, Path(args.data).stem, way): row for way, row in found.items()}
    report(rows, described(args), args.save and ("evaluate-weights-busy" if args.busy else "evaluate-weights"))
    for way, (protocol, most) in differences.items():
        print(f"{way}: AP differs from torch's by up to {most:.2g} ({protocol})")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a trained detector: it decides how long NMS takes")
    parser.add_argument("--data", required=True, help="data YAML")
    parser.add_argument("--only", nargs="+", default=RUNTIMES, choices=RUNTIMES, help="runtimes, with torch among them")
    parser.add_argument("--task", default="val", help="the split whose images are used")
    add_flags(parser)
    return parser.parse_args()


def repeated(args: argparse.Namespace, folder: Path, count: int) -> Path:
    """A data YAML whose val has ``count`` images: those of a split, with their labels, again and again."""
    dataset = open_dataset(args.data)
    place = folder / f"of-{count}"
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    images = itertools.islice(itertools.cycle(dataset.images(args.task)), count)
    for number, image in enumerate(images):
        parts = list(image.resolve().parts)
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        labels = Path(*parts).with_suffix(".txt")
        (place / "images" / f"{number:05}{image.suffix}").symlink_to(image.resolve())
        if labels.is_file():
            (place / "labels" / f"{number:05}.txt").symlink_to(labels)
    file = place / "data.yaml"
    content = {"path": str(place), "train": "images", "val": "images", "nc": len(dataset.names), "names": dataset.names}
    file.write_text(yaml.safe_dump(content))
    return file


def runtime(candidate: str) -> str:
    return candidate.rsplit(" ", 1)[-1]


def difference(folder: Path, runtime: str) -> tuple[str, float]:
    """The protocol and its AP, as a share of 1, that differs most between a runtime and torch."""
    read = {
        way: json.loads((folder / f"runs/evaluate/{way}/evaluation.json").read_text()) for way in (runtime, "torch")
    }
    found = []
    for protocol, figures in read["torch"].items():
        unit = 100 if protocol == "visdrone" else 1
        for name in (name for name, value in figures.items() if "AP" in name and isinstance(value, float)):
            found.append((abs(read[runtime][protocol][name] - figures[name]) / unit, f"{protocol} {name}"))
    most, where = max(found)
    return where, most


if __name__ == "__main__":
    main()
