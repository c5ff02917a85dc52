"""Measures the speed of `yolov5-ema data visdrone`, compared with a simple script.

A generated split of VisDrone's size (6,471 images with about 53 boxes each; small, but real JPEG files) is
converted in turns by

- ours: labels, COCO JSON, linked images and annotations, a journal to resume from; on all cores, and on one;
- plain labels: one process, Pillow for the size, line by line, only YOLO labels;
- plain all: the same with linked images and the COCO JSON, so with the same outputs as ours.

Each starts with an empty folder. Times are medians with quartiles over rounds in which the candidates take turns; the
files are in the page cache. The CPU seconds of all processes together show the work without waiting for the disk or for
other programs. If the disk creates files slowly, the times mostly measure that: choose another disk, or memory, with
`--folder`. `--save NAME` writes a CSV to benchmarks/results.

    python benchmarks/convert_visdrone.py
    python benchmarks/convert_visdrone.py --rounds 9 --folder /dev/shm/bench --save memory
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from yolov5_ema.data.visdrone import convert_visdrone
from yolov5_ema.data.visdrone_format import CLASSES
from yolov5_ema.data.workers import all_cores

SPLIT = "VisDrone2019-DET-train"
SIZES = ((480, 270), (480, 360), (640, 360), (400, 300))
Row = dict[str, Any]


def main() -> None:
    args = parse_args()
    source = generated(args.folder / f"source-{args.images}", args.images)
    candidates: dict[str, Callable[[Path, Path], None]] = {
        "plain labels": plain_labels,
        "plain all": plain_all,
        "ours, 1 process": lambda source, out: ours(source, out, 1),
        f"ours, {all_cores()} processes": lambda source, out: ours(source, out, all_cores()),
    }
    rows = measured(candidates, source, args)
    print_rows(rows)
    if args.save:
        save(rows, args.save)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6471)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/visdrone"), help="folder for the files")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/DATE-convert-NAME.csv")
    return parser.parse_args()


def generated(folder: Path, count: int) -> Path:
    """The split as it would be on disk after unpacking; drawn only once."""
    split = folder / SPLIT
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("images", "annotations"):
        (split / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng, size) for size in SIZES for _ in range(4)]
    for index in range(count):
        width, height = SIZES[index // 4 % 4]
        stem = f"{index // 100:07d}_{index % 100:05d}_d_{index:07d}"
        (split / "images" / f"{stem}.jpg").write_bytes(pictures[index % 16])
        (split / "annotations" / f"{stem}.txt").write_text(annotation(rng, width, height))
    (folder / "complete").touch()
    return folder


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    coarse = rng.integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def annotation(rng: np.random.Generator, width: int, height: int) -> str:
    """About 53 objects: 1 in 30 is an ignored region, and 1 in 60 has the class others, as in VisDrone."""
    count = max(1, int(rng.gamma(2.2, 24)))
    sides = rng.integers(2, 60, (count, 2))
    left = rng.integers(0, width - 30, count)
    top = rng.integers(0, height - 20, count)
    category = rng.choice(12, count, p=[1 / 30, *[0.095] * 10, 1 / 60])
    score = np.where((category == 0) | (rng.random(count) < 0.02), 0, 1)
    table = np.column_stack([left, top, sides, score, category, rng.integers(0, 2, count), rng.integers(0, 3, count)])
    return "".join(",".join(map(str, row)) + "\n" for row in table.tolist())


def ours(source: Path, out: Path, workers: int) -> None:
    convert_visdrone([source], out, workers=workers)


def plain_labels(source: Path, out: Path) -> None:
    """The usual conversion, without moving the images."""
    labels = out / SPLIT / "labels"
    labels.mkdir(parents=True)
    for file in sorted((source / SPLIT / "annotations").glob("*.txt")):
        with Image.open(source / SPLIT / "images" / f"{file.stem}.jpg") as image:
            width, height = image.size
        lines = []
        for line in file.read_text().splitlines():
            row = line.split(",")
            if row[4] == "0" or not 1 <= int(row[5]) <= 10:
                continue
            x, y, w, h = clipped(row, width, height)
            if w > 0 and h > 0:
                lines.append(
                    f"{int(row[5]) - 1} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} "
                    f"{w / width:.6f} {h / height:.6f}\n"
                )
        (labels / file.with_suffix(".txt").name).write_text("".join(lines))


def clipped(row: list[str], width: int, height: int) -> tuple[float, float, float, float]:
    left, top = max(0.0, float(row[0])), max(0.0, float(row[1]))
    right = min(float(width), float(row[0]) + float(row[2]))
    bottom = min(float(height), float(row[1]) + float(row[3]))
    return left, top, right - left, bottom - top


def plain_all(source: Path, out: Path) -> None:
    """The labels, then links and the JSON."""
    plain_labels(source, out)
    for kind in ("images", "annotations"):
        (out / SPLIT / kind).mkdir()
        for file in sorted((source / SPLIT / kind).iterdir()):
            os.link(file, out / SPLIT / kind / file.name)
    coco: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
    }
    for file in sorted((source / SPLIT / "annotations").glob("*.txt")):
        name = f"{file.stem}.jpg"
        with Image.open(source / SPLIT / "images" / name) as image:
            width, height = image.size
        coco["images"].append({"id": file.stem, "file_name": name, "width": width, "height": height})
        for line in file.read_text().splitlines():
            row = line.split(",")
            box = clipped(row, width, height)
            category = int(row[5])
            if category == 11 or min(box[2:]) <= 0:
                continue
            crowd = int(category == 0 or row[4] == "0")
            for cls in range(10) if category == 0 else [category - 1]:
                coco["annotations"].append(
                    {"id": len(coco["annotations"]) + 1, "image_id": file.stem, "category_id": cls, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": crowd, "ignore": crowd}
                )  # fmt: skip
    (out / "annotations").mkdir()
    (out / "annotations" / "instances_train.json").write_text(json.dumps(coco))


def measured(candidates: dict[str, Callable[[Path, Path], None]], source: Path, args: argparse.Namespace) -> list[Row]:
    """Measure the times of every candidate, in turns; the first round fills the page cache."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    out = args.folder / "out"
    for warm_up in (True, *[False] * args.rounds):
        for name, convert in candidates.items():
            shutil.rmtree(out, ignore_errors=True)
            started, used = time.perf_counter(), cpu_seconds()
            convert(source, out)
            if not warm_up:
                times[name].append(time.perf_counter() - started)
                cpu[name].append(cpu_seconds() - used)
    check_same_labels(source, out, args.folder / "plain")
    shutil.rmtree(out)
    reference = {name: statistics.median(times[name]) for name in ("plain labels", "plain all")}
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        row: Row = {"candidate": name, "images": args.images, "median_s": median, "quartile1_s": low}
        row.update(quartile3_s=high, cpu_s=statistics.median(cpu[name]), images_per_s=args.images / median)
        row.update({f"times_{key.replace(' ', '_')}": value / median for key, value in reference.items()})
        rows.append(row)
    return rows


def cpu_seconds() -> float:
    """User and system time of this process and of the workers that have ended."""
    return sum(os.times()[:4])


def check_same_labels(source: Path, ours_out: Path, plain_out: Path) -> None:
    """Check that both give the same result, except for repeated boxes, which ours leaves out, as YOLOv5 would."""
    shutil.rmtree(plain_out, ignore_errors=True)
    plain_labels(source, plain_out)
    for file in sorted((plain_out / SPLIT / "labels").iterdir()):
        expected = list(dict.fromkeys(file.read_text().splitlines()))
        found = (ours_out / SPLIT / "labels" / file.name).read_text().splitlines()
        assert len(found) == len(expected), file.name
        difference = np.array([row.split() for row in found], float) - np.array(
            [row.split() for row in expected], float
        )
        assert np.abs(difference).max(initial=0) < 1.01e-6, file.name
    shutil.rmtree(plain_out)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, Pillow {PIL.__version__}"
    return f"{names[0] if names else platform.machine()}, {all_cores()} cores, {versions}"


def print_rows(rows: list[Row]) -> None:
    print(f"{machine()}; {rows[0]['images']:,} images\n")
    print(
        f"{'':<19}{'median s':>9}{'quartiles':>15}{'CPU s':>7}{'images/s':>10}{'x plain labels':>16}{'x plain all':>13}"
    )
    for row in rows:
        quartiles = f"{row['quartile1_s']:.2f} - {row['quartile3_s']:.2f}"
        print(
            f"{row['candidate']:<19}{row['median_s']:>9.2f}{quartiles:>15}{row['cpu_s']:>7.2f}"
            f"{row['images_per_s']:>10,.0f}{row['times_plain_labels']:>16.2f}{row['times_plain_all']:>13.2f}"
        )


def save(rows: list[Row], name: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-convert-{name}.csv"
    with file.open("w", newline="") as stream:
        stream.write(f"# {machine()}\n")
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
