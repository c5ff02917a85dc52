"""Measures images per second of ``yolov5-ema predict``, in several runtimes and with Ray, against YOLOv5's own detect.

Whole commands, as a user types them, run in turns: on few images, which mostly measures the start, and on all images.
Images per second are the difference of the numbers of images divided by the difference of the medians of seconds. What
is left is the time to start. The processor time is that of the command and of its processes: another process at work
changes it less than the seconds. Exports are made before, in a cache folder of their own.

    python benchmarks/predict.py --source bccd aerial_cars --save
    python benchmarks/predict.py --weights best.pt --source images/ --rounds 3 --busy
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from training import BY_ITSELF, HOME, busy_process

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.comparing.machine import machine, software
from yolov5_ema.data.dataset import IMAGE_SUFFIXES
from yolov5_ema.engine import shim
from yolov5_ema.upstream.locate import locate

FEW = 40
REFERENCE = "detect --nosave"
PREDICT = ("predict", "--force", "-o", "out.json")
CANDIDATES = {
    REFERENCE: ("detect", "--nosave"),
    "detect --nosave, threads sleep": ("detect", "--nosave"),
    "predict --runtime auto": (*PREDICT, "--runtime", "auto"),
    "predict --runtime onnx": (*PREDICT, "--runtime", "onnx"),
    "predict --runtime openvino": (*PREDICT, "--runtime", "openvino"),
    "predict --runtime torch": (*PREDICT, "--runtime", "torch"),
    "predict --runtime torch --batch 1": (*PREDICT, "--runtime", "torch", "--batch", "1"),
}
WITH_RAY = {
    "predict --engine ray --workers 1": (*PREDICT, "--engine", "ray", "--workers", "1"),
    "predict --engine ray --workers 2": (*PREDICT, "--engine", "ray", "--workers", "2"),
}


class Taken(NamedTuple):
    """What a command took: seconds on the clock, and of the processors."""

    clock_s: float
    cpu_s: float


Row = dict[str, float]
Times = Mapping[str, Mapping[int, Sequence[Taken]]]
"""For each candidate and each number of images, what each round took."""


def main() -> None:
    args = parse_args()
    candidates = chosen({**CANDIDATES, **(WITH_RAY if args.ray else {})}, args.only)
    rows: dict[tuple[str, str, str], Row] = {}
    windows = ("--slice", str(args.slice)) if args.slice else ()
    with tempfile.TemporaryDirectory() as name, busy_process() if args.busy else contextlib.nullcontext():
        weights = args.weights or [untrained(Path(name), size) for size in "ns"]
        for file, source in itertools.product(weights, args.source or [None]):
            folder = Path(name, f"{len(rows)}")
            folder.mkdir()
            images = given(source, args.images) if source else drawn(folder / "drawn", args.images)
            sources = {len(some): linked(folder / f"of-{len(some)}", some) for some in (images[:FEW], images)}
            flags = {
                count: ("--weights", str(file.resolve()), "--img", str(args.img), *windows, "--source", str(place))
                for count, place in sources.items()
            }
            found = rows_of(timed(candidates, flags, args.rounds, folder))
            rows.update({(file.name, source.name if source else "drawn", way): row for way, row in found.items()})
    report(rows, described(args), args.save and ("predict-busy" if args.busy else "predict"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, nargs="+", help="(default: yolov5n-ema and yolov5s-ema, untrained)")
    parser.add_argument("--source", type=Path, nargs="+", help="folders with images (default: images are drawn)")
    parser.add_argument("--ray", action="store_true", help="also with Ray")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="beside detect, only commands that end with these")
    parser.add_argument("--slice", type=int, metavar="SIZE", help="all commands also detect in windows of this size")
    add_flags(parser)
    args = parser.parse_args()
    for what, paths in (("folders", args.source), ("weights", args.weights)):
        names = [path.name for path in paths or ()]
        if len(set(names)) < len(names):
            parser.error(f"{what} of one name would share a line of the table: {' '.join(names)}")
    return args


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=500, help="number of images; fewer are repeated")
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="beside a process that computes without a pause")
    parser.add_argument("--save", action="store_true", help="write a CSV into benchmarks/results/")


def chosen(candidates: Mapping[str, Sequence[str]], ends: Sequence[str] | None) -> Mapping[str, Sequence[str]]:
    """The reference, and the candidates whose names end with one of some words; all without any."""
    return {
        name: command
        for name, command in candidates.items()
        if name == REFERENCE or not ends or name.endswith(tuple(ends))
    }


def untrained(folder: Path, size: str) -> Path:
    """A checkpoint with random weights, which finds nothing: what is measured is the model."""
    file = folder / f"yolov5{size}-ema.pt"
    torch.manual_seed(0)
    with quiet():
        model = shim.install().module("models.yolo").Model(build_cfg(size=size, block="EMA", nc=3))
    model.nc, model.names = 3, ["a", "b", "c"]
    torch.save({"epoch": -1, "model": model.half(), "ema": None, "updates": None, "optimizer": None}, file)
    shim.uninstall()
    return file


def given(source: Path, count: int) -> list[Path]:
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        sys.exit(f"{source}: no images")
    return list(itertools.islice(itertools.cycle(found), count))


def drawn(folder: Path, count: int) -> list[Path]:
    """JPEGs of 640 x 480 with blobs on noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / f"{number:05}.jpg" for number in range(count)]
    for file in files:
        image = cv2.blur(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), (5, 5))
        for x, y, radius in rng.integers((0, 0, 8), (640, 480, 40), (15, 3)).tolist():
            cv2.circle(image, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1)
        cv2.imwrite(str(file), image)
    return files


def linked(folder: Path, images: Iterable[Path]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number:05}{image.suffix.lower()}").symlink_to(image.resolve())
    return folder


def timed(
    candidates: Mapping[str, Sequence[str]], flags: Mapping[int, Sequence[str]], rounds: int, folder: Path
) -> dict[str, dict[int, list[Taken]]]:
    """What each candidate takes for each number of images, in turns; before, each is run once on all of them.

    The first candidate is YOLOv5 as it is by itself: see `training.BY_ITSELF`.

    Args:
        candidates: the command of each, and its own flags.
        flags: the flags of all of them, by the number of images.
        rounds: the number of rounds.
        folder: where they run.
    """
    taken: dict[str, dict[int, list[Taken]]] = {name: {count: [] for count in flags} for name in candidates}
    cache = folder.parent / "cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    ours = {**os.environ, "PYTHONPATH": str(HOME), "YOLOV5_EMA_CACHE": str(cache)}
    first = next(iter(candidates))
    for turn in range(-1, rounds):
        for name, command in candidates.items():
            for count in flags if turn >= 0 else [max(flags)]:
                words = [sys.executable, "-m", "yolov5_ema", *command, *flags[count]]
                before_s, began_s = cpu_s(), time.perf_counter()
                environment = {**ours, **BY_ITSELF} if name == first else ours
                done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr[-2000:]}")
                if turn >= 0:
                    taken[name][count].append(Taken(time.perf_counter() - began_s, cpu_s() - before_s))
    return taken


def cpu_s() -> float:
    """The processor time of all commands that have ended, and of their processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows_of(times: Times) -> dict[str, Row]:
    """The figures of each candidate, and how many times as fast as the first one it is."""
    rows = {name: figures(taken) for name, taken in times.items()}
    first = next(iter(rows.values()))
    return {name: {**row, "times_as_fast": row["images_per_s"] / first["images_per_s"]} for name, row in rows.items()}


def figures(taken: Mapping[int, Sequence[Taken]]) -> Row:
    few, many = sorted(taken)
    start_s, whole_s = (statistics.median(one.clock_s for one in taken[count]) for count in (few, many))
    start_cpu_s, whole_cpu_s = (statistics.median(one.cpu_s for one in taken[count]) for count in (few, many))
    rate = (many - few) / (whole_s - start_s)
    return {
        "images_per_s": rate,
        "cpu_ms_per_image": 1e3 * (whole_cpu_s - start_cpu_s) / (many - few),
        "start_s": start_s - few / rate,
        "whole_s": whole_s,
        "least_s": min(one.clock_s for one in taken[many]),
        "most_s": max(one.clock_s for one in taken[many]),
    }


def described(args: argparse.Namespace) -> str:
    here = machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {version}" for name, version in software(locate()).items())
    busy = "beside a busy process; " if args.busy else ""
    return (
        f"{here['device']}, {here['cores']} cores, load {here['load']} at the end; {busy}{versions}\n"
        f"{args.images} images at {args.img} pixels, medians of {args.rounds} rounds (least to most in brackets)"
    )


def report(rows: Mapping[tuple[str, str, str], Row], about: str, saved_as: str) -> None:
    """Print the figures of each weights file, source and candidate; also write a CSV unless ``saved_as`` is empty."""
    print(f"{about}\n")
    for (weights, source, name), row in rows.items():
        print(
            f"{weights:<16}{source:<14}{name:<36}{row['images_per_s']:>7.2f} images/s"
            f" ({row['times_as_fast']:.2f} times){row['cpu_ms_per_image']:>8.1f} ms of processors"
            f"{row['start_s']:>6.1f} s to start{row['whole_s']:>7.1f} s in all"
            f" ({row['least_s']:.1f} to {row['most_s']:.1f})"
        )
    if not saved_as:
        return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-{saved_as}.csv"
    with open(file, "w", newline="") as stream:
        stream.writelines(f"# {line}\n" for line in about.splitlines())
        writer = csv.writer(stream)
        writer.writerow(["weights", "source", "candidate", *next(iter(rows.values()))])
        writer.writerows([*names, *(f"{value:.4g}" for value in row.values())] for names, row in rows.items())
    print(f"{file} written")


if __name__ == "__main__":
    main()
