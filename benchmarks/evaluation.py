"""Measures the time of the VisDrone protocol on the boxes of a whole validation set, compared with pycocotools.

There are 548 images with 500 detections and 70 objects each, drawn with sizes and classes like VisDrone's. Candidates
take turns; times are medians with quartiles. Ratios compare with pycocotools' ``evaluate`` and ``accumulate``, without
building its index. Our times are from arrays to figures.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --save
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from yolov5_ema.data.visdrone_format import CLASSES
from yolov5_ema.evaluation.coco import CocoProtocol
from yolov5_ema.evaluation.records import Predictions, Truth
from yolov5_ema.evaluation.visdrone import VisDroneProtocol
from yolov5_ema.evaluation.yolov5 import Yolov5Protocol

Case = list["tuple[Truth, Predictions]"]
SHARES = (0.25, 0.08, 0.03, 0.35, 0.06, 0.03, 0.03, 0.02, 0.02, 0.13)
"""The fractions of the classes, about those of VisDrone."""
REFERENCE = "pycocotools evaluate + accumulate"


def main() -> None:
    args = parse_args()
    case = drawn_case(args.images, args.detections)
    candidates: dict[str, Callable[[], object]] = {
        REFERENCE: pycocotools(case),
        "visdrone protocol": lambda: computed(VisDroneProtocol(CLASSES), case),
        "yolov5 protocol": lambda: computed(Yolov5Protocol(CLASSES), case),
        "coco protocol": lambda: computed(CocoProtocol(CLASSES), case),
    }
    rows = timed(candidates, args.rounds)
    print(f"{args.images} images, {args.detections} detections each; {machine()}; medians of {args.rounds} rounds")
    for name, row in rows.items():
        print(
            f"{name:<36}{row['median_s']:>9.2f} s  ({row['low_s']:.2f} to {row['high_s']:.2f})"
            f"{row['times_faster']:>9.1f} times as fast"
        )
    if args.save:
        save(rows, args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=548)
    parser.add_argument("--detections", type=int, default=500, help="for each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-evaluation.csv")
    return parser.parse_args()


def drawn_case(images: int, detections: int, objects: int = 70) -> Case:
    """Detections near objects, and nearly half of them away from any; every second image has an ignored region."""
    rng = np.random.default_rng(0)
    size = np.array([1920, 1080])
    case = []
    for number in range(images):
        classes = rng.choice(10, objects, p=SHARES)
        sides = np.exp(rng.normal(3.2, 0.6, (objects, 2)))
        boxes = np.concatenate([rng.random((objects, 2)) * (size - sides), sides], axis=1).round()
        chosen = rng.integers(0, objects, detections)
        found = boxes[chosen]
        found[:, :2] += rng.normal(0, 0.12, (detections, 2)) * found[:, 2:]
        found[:, 2:] *= np.exp(rng.normal(0, 0.12, (detections, 2)))
        far = rng.random(detections) < 0.45
        found[far, :2] = rng.random((np.count_nonzero(far), 2)) * (size - 60)
        labels = np.where(rng.random(detections) < 0.9, classes[chosen], rng.choice(10, detections))
        regions = np.array([[100.0, 100, 200, 150]])[: number % 2]
        truth = Truth(f"{number:05}", 1920, 1080, boxes, classes, rng.random(objects) < 0.03, regions)
        case.append((truth, Predictions(found, rng.random(detections).round(5), labels).by_score()))
    return case


def computed(protocol: VisDroneProtocol | Yolov5Protocol | CocoProtocol, case: Case) -> object:
    for truth, predictions in case:
        protocol.update(truth, predictions)
    return protocol.compute()


def pycocotools(case: Case) -> Callable[[], object]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, objects, found = [], [], []
    for number, (truth, predictions) in enumerate(case):
        images.append({"id": number})
        for box, label, ignored in zip(truth.boxes.tolist(), truth.classes.tolist(), truth.ignored):
            row = {"id": len(objects) + 1, "image_id": number, "category_id": label, "iscrowd": int(ignored)}
            objects.append({**row, "bbox": box, "area": box[2] * box[3]})
        rows = zip(predictions.boxes.tolist(), predictions.scores.tolist(), predictions.classes.tolist())
        found += [{"image_id": number, "bbox": b, "score": s, "category_id": c} for b, s, c in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        categories = [{"id": number} for number in range(10)]
        truth.dataset = {"images": images, "annotations": objects, "categories": categories}
        truth.createIndex()
        results = truth.loadRes(found)

    def run() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, results, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval

    return run


def timed(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rows = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        ratios = [ours / theirs for ours, theirs in zip(values, seconds[REFERENCE])]
        rows[name] = {
            "median_s": median,
            "low_s": low,
            "high_s": high,
            "times_faster": 1 / statistics.median(ratios),
        }
    return rows


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def save(rows: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-evaluation.csv"
    with open(file, "w", newline="") as stream:
        names = ["candidate", *next(iter(rows.values())), "images", "detections", "rounds", "machine"]
        writer = csv.writer(stream)
        writer.writerow(names)
        for name, row in rows.items():
            values = [f"{value:.4g}" for value in row.values()]
            writer.writerow([name, *values, args.images, args.detections, args.rounds, machine()])
    print(f"{file} written")


if __name__ == "__main__":
    main()
