"""Compares ways to merge the boxes of windows: `yolov5_ema.scripts.window_views.merge` and others.

Each way gets the same boxes, after YOLOv5's suppression within the image and within each window. Its figure is AP50 of
the best 300 boxes of an image by the protocols of YOLOv5 and COCO (`yolov5_ema.evaluation`). The two differ if some
objects are never found: YOLOv5's draws a line from the last recall to 1, COCO's counts 0 there. There are four cases:

- mosaics: the detections of a detector on images of 1024 x 768. Each consists of 12 images drawn as `yolov5-ema demo`
  draws its own, but with another seed, so that the detector has seen none of them; windows of 256 pixels,
  `--iou-thres 0.6`, confidence above 0.01;
- mosaics > 0.25: those of the same boxes with a confidence above 0.25;
- crowd: simulated. People in clusters, some in front of others, seen with noise by windows of 320 pixels of an image of
  1280 x 960. There are no false detections;
- crowd + large: the same with 12 objects of 150 to 500 pixels, of the people's class, in each scene; and the figure of
  these alone (COCO's, of objects of more than 96 x 96 pixels).

The detector is the one that `yolov5-ema demo` trains in `runs/demo`. The images are drawn in `--demo-set`, and the
mosaics are written to `--mosaics`, which can then be used as a data set by `yolov5-ema val`; `--draw-only` stops there.

    yolov5-ema demo
    python benchmarks/slice_merging.py
    python benchmarks/slice_merging.py --weights runs/demo/exp/train/weights/best.pt --save
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import io
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import sahi
import torch
import torchvision
import yaml
from sahi.postprocess.combine import GreedyNMMPostprocess
from sahi.postprocess.combine import batched_nms as batched_nms_of_sahi
from sahi.prediction import ObjectPrediction
from torchvision.ops import batched_nms

from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.demo import NAMES, generate
from yolov5_ema.data.slicing import Window, windows
from yolov5_ema.engine import shim
from yolov5_ema.evaluation import CocoProtocol, Predictions, Truth, Yolov5Protocol
from yolov5_ema.evaluation.sources import dataset_truths
from yolov5_ema.scripts import sliced
from yolov5_ema.scripts.collecting import collected_detections
from yolov5_ema.scripts.window_views import CUT, SMALLER, WHOLE, Origin, fits_a_window, is_inside, merge
from yolov5_ema.upstream.locate import Engine
from yolov5_ema.upstream.patching import Patches

TILE = 256  # pixels; the demo's images, the windows on the mosaics, and the detector's input
ROWS, COLUMNS = 3, 4  # tiles of a mosaic
MOSAIC_SEED = 77  # the demo's own set is drawn from 0
CROWD_SIZE = (1280, 960)  # width, height
CROWD_WINDOW = 320
LARGE_OBJECTS = 12  # in each scene of the fourth case
OVERLAP = 0.2

Way = Callable[[torch.Tensor, Origin], torch.Tensor]
"""From the boxes of all windows, (n, 6) of x1, y1, x2, y2, confidence, class, and their origin, to (k, 6)."""
Row = dict[str, Any]


@dataclass
class Scene:
    """One image: its objects, and the detections in it and its windows."""

    truth: Truth
    boxes: torch.Tensor
    origin: Origin


def main() -> None:
    args = parse_args()
    data = drawn_mosaics(args)
    print(f"{data} written", flush=True)
    if args.draw_only:
        return
    engine = shim.install()
    mosaics = predicted(engine, data, args.weights)
    cases = {
        "mosaics": mosaics,
        "mosaics > 0.25": [above(scene, 0.25) for scene in mosaics],
        "crowd": simulated(args.scenes, 0, args.seed),
        "crowd + large": simulated(args.scenes, LARGE_OBJECTS, args.seed),
    }
    rows = [
        {**counts(case, scenes), "way": name, **figures(way, scenes)}
        for name, way in WAYS.items()
        for case, scenes in cases.items()
    ]
    print_rows(rows, engine)
    if args.save:
        save(rows, engine)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("runs/demo/exp/train/weights/best.pt"),
        help="the detector that `yolov5-ema demo` trained",
    )
    parser.add_argument(
        "--demo-set",
        type=Path,
        default=Path(f"runs/demo/set-{TILE}-seed{MOSAIC_SEED}-mosaics"),
        help="folder for the images that the mosaics are made of; they are drawn if it does not exist",
    )
    parser.add_argument("--mosaics", type=Path, default=Path("runs/demo/mosaics"), help="folder for the mosaics")
    parser.add_argument("--images", type=int, default=24, help="number of mosaics")
    parser.add_argument("--scenes", type=int, default=30, help="number of scenes of each simulated case")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulated crowds")
    parser.add_argument("--draw-only", action="store_true", help="only write the mosaics")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-slice_merging.csv")
    args = parser.parse_args()
    if not args.draw_only and not args.weights.is_file():
        parser.error(f"--weights {args.weights}: no such file; `yolov5-ema demo` trains one")
    return args


# --- ways -----------------------------------------------------------------------------------


def without_rank_2(boxes: torch.Tensor, origin: Origin) -> torch.Tensor:
    """As in the package, but small boxes of the whole image count as much as any; they compete with the same ones."""
    is_smaller = origin.rank == SMALLER
    rank = torch.where(is_smaller, WHOLE, origin.rank)
    return merge(boxes, Origin(torch.where(is_smaller, -1, origin.source), rank))


def stricter_within(boxes: torch.Tensor, origin: Origin) -> torch.Tensor:
    """As in the package, but with ``--iou-thres 0.45``, detect's default, not 0.6, val's: suppress the result again."""
    kept = batched_nms(boxes[:, :4], boxes[:, 4], group_of(origin, boxes[:, 5]), 0.45)
    return merge(boxes[kept], Origin(origin.source[kept], origin.rank[kept]))


def group_of(origin: Origin, classes: torch.Tensor) -> torch.Tensor:
    """A number for each source, rank and class: YOLOv5's suppression compares boxes of the same number."""
    return (3 * origin.source + origin.rank) * len(NAMES) + classes.long()


def by_iou(threshold: float) -> Way:
    """Suppression by IoU of all boxes of a class, as if they were from one image."""
    return lambda boxes, _: boxes[batched_nms(boxes[:, :4], boxes[:, 4], boxes[:, 5], threshold)]


def half_inside(boxes: torch.Tensor, _: Origin) -> torch.Tensor:
    """Suppress every box that lies by half in a more confident box of its class, or contains half of that box."""
    kept = batched_nms_of_sahi(boxes.double().numpy(), match_metric="IOS", match_threshold=0.5)
    return boxes[torch.tensor(list(kept), dtype=torch.long)]


def sahi_greedy(boxes: torch.Tensor, _: Origin) -> torch.Tensor:
    """sahi's own postprocessing, with the defaults of ``get_sliced_prediction``."""
    postprocess = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    found = [
        ObjectPrediction(bbox=row[:4], score=row[4], category_id=int(row[5]), category_name=str(int(row[5])))
        for row in boxes.tolist()
    ]
    merged = [[*p.bbox.to_xyxy(), p.score.value, p.category.id] for p in postprocess(found)]
    return torch.tensor(merged, dtype=torch.float32).reshape(-1, 6)


WAYS: dict[str, Way] = {
    "as here": merge,
    "the same, --iou-thres 0.45": stricter_within,
    "the same without rank 2": without_rank_2,
    "IoU 0.6 over all": by_iou(0.6),
    "IoU 0.45 over all": by_iou(0.45),
    "half inside, over all": half_inside,
    "sahi's greedy merging": sahi_greedy,
}


def figures(way: Way, scenes: list[Scene]) -> Row:
    """AP50 of the boxes, merged in one way. (At IoU 0.5 the rules of all YOLOv5 releases are the same.)"""
    yolov5 = Yolov5Protocol(NAMES)
    coco = CocoProtocol(NAMES, max_dets=(1, 10, yolov5.max_det), by_size=True)
    for scene in scenes:
        rows = way(scene.boxes, scene.origin).double().numpy()
        boxes = np.concatenate([rows[:, :2], rows[:, 2:4] - rows[:, :2]], axis=1)
        found = Predictions(boxes, rows[:, 4], rows[:, 5].astype(np.int64)).by_score()
        yolov5.update(scene.truth, found)
        coco.update(scene.truth, found)
    theirs = coco.compute()
    large = theirs.by_size["large"]["AP50"]  # nan if there are none
    return {
        "yolov5_AP50": yolov5.compute().metrics["mAP50"],
        "coco_AP50": theirs.metrics["AP50"],
        "coco_AP50_large": large if large >= 0 else None,
    }


def above(scene: Scene, confidence: float) -> Scene:
    kept = scene.boxes[:, 4] > confidence
    return Scene(scene.truth, scene.boxes[kept], Origin(scene.origin.source[kept], scene.origin.rank[kept]))


# --- mosaics --------------------------------------------------------------------------------


def drawn_mosaics(args: argparse.Namespace) -> Path:
    """Put the images of a drawn set side by side, as PNGs, which keep the pixels unchanged; returns the data YAML."""
    tiles = ROWS * COLUMNS
    demo = generate(args.demo_set, seed=MOSAIC_SEED, train=1, val=1, test=args.images * tiles, imgsz=TILE).parent
    root = args.mosaics.absolute()
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True, exist_ok=True)
    for number in range(args.images):
        names = [f"test_{number * tiles + at:05d}" for at in range(tiles)]
        pictures = [np.asarray(cv2.imread(str(demo / "images/test" / f"{name}.jpg"))) for name in names]
        picture = np.vstack([np.hstack(pictures[at : at + COLUMNS]) for at in range(0, tiles, COLUMNS)])
        labels = [moved(demo / "labels/test" / f"{name}.txt", at) for at, name in enumerate(names)]
        cv2.imwrite(str(root / "images/val" / f"mosaic_{number:02d}.png"), picture)
        np.savetxt(
            root / "labels/val" / f"mosaic_{number:02d}.txt",
            np.concatenate(labels),
            fmt=["%d", *["%.6f"] * 4],
        )
    content = {"path": str(root), "train": "images/val", "val": "images/val"}
    data = root / "mosaics.yaml"
    data.write_text(yaml.safe_dump({**content, "nc": len(NAMES), "names": list(NAMES)}, sort_keys=False))
    return data


def moved(file: Path, at: int) -> np.ndarray:
    """The labels of a tile in coordinates of its mosaic, (n, 5)."""
    rows = np.array([line.split() for line in file.read_text().splitlines()], dtype=float).reshape(-1, 5)
    rows[:, 1:3] += (at % COLUMNS, at // COLUMNS)
    rows[:, 1:] /= (COLUMNS, ROWS, COLUMNS, ROWS)
    return rows


def predicted(engine: Engine, data: Path, weights: Path) -> list[Scene]:
    """The boxes that ``val --slice`` merges, in pixels of the mosaics."""
    val = engine.module("val")
    origins: list[Origin] = []

    def keep_all(boxes: torch.Tensor, origin: Origin, **_: Any) -> torch.Tensor:
        order = boxes[:, 4].argsort(descending=True, stable=True)
        origins.append(Origin(origin.source[order], origin.rank[order]))
        return boxes[order]

    patches = Patches()
    patches.set(sliced, "merge", keep_all)
    options = {"imgsz": TILE, "conf_thres": 0.01, "iou_thres": 0.6, "batch_size": 4, "device": "cpu"}
    try:
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(collected_detections(engine, max_det=100_000))
            stack.enter_context(sliced.sliced_inference(engine, "val", TILE, OVERLAP))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # figures of boxes that are not merged
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            place = stack.enter_context(tempfile.TemporaryDirectory())
            val.run(data=str(data), weights=str(weights), project=place, **options)
    finally:
        patches.undo()
    truths = dataset_truths(load_dataset(data), "val", ["yolov5"])["yolov5"].truths
    assert len(found.detections) == len(origins) == len(truths), "an image without any detection"
    scenes = []
    for (image, rows), origin in zip(found.detections.items(), origins):
        assert len(rows) == len(origin.source), image
        scenes.append(Scene(truths[image.stem], torch.from_numpy(rows), origin))
    return scenes


# --- crowds ---------------------------------------------------------------------------------


def simulated(count: int, large: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng([seed, large])
    return [crowd(rng, f"{number:03d}", large) for number in range(count)]


def crowd(rng: np.random.Generator, name: str, large: int) -> Scene:
    """A scene, and the boxes of the image and its windows after YOLOv5's suppression."""
    width, height = CROWD_SIZE
    objects = drawn_objects(rng, large)
    clearness = rng.uniform(0.5, 1, len(objects))  # for an object, in every window that shows it
    cut = windows(width, height, CROWD_WINDOW, OVERLAP)
    boxes, sources, ranks = [], [], []
    for number, window in enumerate([(0, 0, width, height), *cut]):
        scale = CROWD_WINDOW / (window[2] - window[0])
        found = torch.from_numpy(seen(rng, objects, window, scale, clearness)).float()
        if number == 0:
            rank = SMALLER * fits_a_window(found[:, :4], cut, (height, width)).long()
        else:
            rank = CUT * (~is_inside(found, window, (height, width))).long()
        boxes.append(found)
        sources.append(torch.full_like(rank, number))
        ranks.append(rank)
    rows, source, rank = torch.cat(boxes), torch.cat(sources), torch.cat(ranks)
    kept = batched_nms(rows[:, :4], rows[:, 4], group_of(Origin(source, rank), rows[:, 5]), 0.6)
    sides = objects[:, 2:] - objects[:, :2]
    zeros = np.zeros(len(objects), np.int64)
    truth = Truth(name, width, height, np.concatenate([objects[:, :2], sides], axis=1), zeros, zeros > 0)
    return Scene(truth, rows[kept], Origin(source[kept], rank[kept]))


def drawn_objects(rng: np.random.Generator, large: int, people: int = 220, clusters: int = 12) -> np.ndarray:
    """Boxes, (n, 4) of left, top, right, bottom. About one in seven is a child in front of somebody else."""
    size = np.array(CROWD_SIZE)
    places = rng.uniform(0, 1, (clusters, 2)) * size
    boxes: list[np.ndarray] = []
    for _ in range(people):
        centre = places[rng.integers(clusters)] + rng.normal(0, 45, 2)
        tall = rng.uniform(18, 90)
        wide = tall * rng.uniform(0.35, 0.5)
        if boxes and rng.random() < 0.15:
            left, top, right, bottom = boxes[rng.integers(len(boxes))]
            tall = (bottom - top) * rng.uniform(0.4, 0.6)
            wide = tall * 0.42
            leftmost, rightmost = left + wide / 2, max(right, left + wide) - wide / 2
            centre = np.array([rng.uniform(leftmost, rightmost), bottom - tall / 2])
        boxes.append(around(centre, np.array([wide, tall])))
    for _ in range(large):
        boxes.append(around(rng.uniform(0, 1, 2) * size, rng.uniform(150, 500, 2)))
    clipped = np.array(boxes).clip(0, [*size, *size])
    return clipped[(clipped[:, 2:] - clipped[:, :2] > 4).all(axis=1)]


def around(centre: np.ndarray, sides: np.ndarray) -> np.ndarray:
    return np.concatenate([centre - sides / 2, centre + sides / 2])


def seen(
    rng: np.random.Generator, objects: np.ndarray, window: Window, scale: float, clearness: np.ndarray
) -> np.ndarray:
    """Simulated detections in a window, (n, 6): the visible parts of objects, with random errors.

    Objects that are small in its input are missed, and some large ones too; cut objects get a low confidence.
    """
    limits = np.array([*window[:2], *window[:2]]), np.array([*window[2:], *window[2:]])
    parts = objects.clip(*limits)
    sides = parts[:, 2:] - parts[:, :2]
    shown = sides.prod(axis=1) / (objects[:, 2:] - objects[:, :2]).prod(axis=1)
    length = sides.max(axis=1) * scale  # in pixels of the input
    chance = np.select([length < 8, length < 16, length > 220], [0.1, 0.5, 0.6], 0.92)
    found = (shown > 0.2) & (rng.random(len(objects)) < chance)
    spread = np.tile(sides[found], (1, 2)) * 0.03 + 0.7 / scale
    boxes = (parts[found] + rng.normal(0, 1, spread.shape) * spread).clip(*limits)
    scores = clearness[found] * rng.uniform(0.75, 1, len(boxes)) * (0.4 + 0.6 * shown[found])
    rows = np.concatenate([boxes, scores.clip(0.02, 0.99)[:, None], np.zeros((len(boxes), 1))], axis=1)
    return rows[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


# --- the outcome ----------------------------------------------------------------------------


def counts(case: str, scenes: list[Scene]) -> Row:
    return {
        "case": case,
        "images": len(scenes),
        "objects": sum(len(scene.truth.boxes) for scene in scenes),
        "boxes": sum(len(scene.boxes) for scene in scenes),
    }


def machine(engine: Engine) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "sahi": sahi.__version__}
    versions.update(torchvision=torchvision.__version__, NumPy=np.__version__, YOLOv5=engine.version)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {listed}"


def print_rows(rows: list[Row], engine: Engine) -> None:
    cases = {row["case"]: row for row in rows}
    print(f"{machine(engine)}\n")
    for case, row in cases.items():
        print(
            f"{case:<16}{row['images']:>4} images,{row['objects']:>6,} objects,{row['boxes']:>7,} boxes of all windows"
        )
    for figure in ("yolov5_AP50", "coco_AP50", "coco_AP50_large"):
        shown = [case for case, row in cases.items() if row[figure] is not None]
        print(f"\n{figure:<28}" + "".join(f"{case:>16}" for case in shown))
        for way in WAYS:
            values = {row["case"]: row[figure] for row in rows if row["way"] == way}
            print(f"{way:<28}" + "".join(f"{values[case]:>16.3f}" for case in shown))


def save(rows: list[Row], engine: Engine) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-slice_merging.csv"
    with file.open("w", newline="") as stream:
        stream.write(f"# {machine(engine)}\n")
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )
    print(f"written to {file}")


if __name__ == "__main__":
    main()
