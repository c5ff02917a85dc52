"""Measures images per second of YOLOv5's own detect and of ``yolov5-ema predict``, in one process and with Ray.

Whole commands, as a user types them, run in turns: on few images, which mostly measures the start, and on all images.
Images per second are the difference of the numbers of images divided by the difference of the medians of seconds. What
is left is the time to start.

    python benchmarks/predict.py --weights best.pt --source images/ --rounds 3
    python benchmarks/predict.py --weights best.pt --save
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch

from yolov5_ema.comparing.machine import machine, software
from yolov5_ema.data.dataset import IMAGE_SUFFIXES
from yolov5_ema.upstream.locate import locate

FEW = 4
PREDICT = ("predict", "--force", "--chunk", "4", "-o", "out.json")
CANDIDATES = {
    "detect --nosave": ("detect", "--nosave"),
    "predict": PREDICT,
    "predict --threads 1": (*PREDICT, "--threads", "1"),
    "predict --engine ray --workers 1": (*PREDICT, "--engine", "ray", "--workers", "1"),
    "predict --engine ray --workers 2": (*PREDICT, "--engine", "ray", "--workers", "2"),
}


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = given(args.source, args.images) if args.source else drawn(folder / "drawn", args.images)
        sources = {len(some): linked(folder / f"of-{len(some)}", some) for some in (images[:FEW], images)}
        seconds = timed(args, folder, sources)
    rows = {candidate: figures(taken) for candidate, taken in seconds.items()}
    about = described(args, len(images))
    print(f"{about}\n")
    for candidate, row in rows.items():
        print(
            f"{candidate:<34}{row['images_per_s']:>8.2f} images/s{row['start_s']:>8.1f} s to start"
            f"{row['whole_s']:>8.1f} s in all ({row['least_s']:.1f} to {row['most_s']:.1f})"
        )
    if args.save:
        save(rows, about)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="folder with images (default: images are drawn)")
    parser.add_argument("--images", type=int, default=200, help="maximum number of images")
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-predict.csv")
    args = parser.parse_args()
    if args.images <= FEW:
        parser.error(f"--images must be more than {FEW}")
    return args


def given(source: Path, most: int) -> list[Path]:
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(found) <= FEW:
        sys.exit(f"{source}: fewer than {FEW + 1} images")
    return found[:most]


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


def timed(args: argparse.Namespace, folder: Path, sources: dict[int, Path]) -> dict[str, dict[int, list[float]]]:
    """The seconds of each candidate for each number of images, measured in turns."""
    seconds = {candidate: {count: [] for count in sources} for candidate in CANDIDATES}
    flags = ("--weights", str(args.weights.resolve()), "--img", str(args.img))
    home = str(Path(__file__).resolve().parent.parent)
    # threads that spin while they wait would measure what else the machine does
    environment = {**os.environ, "PYTHONPATH": home, "OMP_WAIT_POLICY": "PASSIVE"}
    for _ in range(args.rounds):
        for candidate, argv in CANDIDATES.items():
            for count, source in sources.items():
                command = [sys.executable, "-m", "yolov5_ema", *argv, *flags, "--source", str(source)]
                started_s = time.perf_counter()
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                seconds[candidate][count].append(time.perf_counter() - started_s)
                if done.returncode:
                    sys.exit(f"{candidate}: {done.stderr[-2000:]}")
    return seconds


def figures(seconds: dict[int, list[float]]) -> dict[str, float]:
    few, many = sorted(seconds)
    start_s, whole_s = statistics.median(seconds[few]), statistics.median(seconds[many])
    rate = (many - few) / (whole_s - start_s)
    return {
        "images_per_s": rate,
        "start_s": start_s - few / rate,
        "whole_s": whole_s,
        "least_s": min(seconds[many]),
        "most_s": max(seconds[many]),
    }


def described(args: argparse.Namespace, count: int) -> str:
    here = machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {version}" for name, version in software(locate()).items())
    return (
        f"{here['device']}, {here['cores']} cores, load {here['load']} at the end; {versions}\n"
        f"{count} images at {args.img} pixels, medians of {args.rounds} rounds (least to most in brackets)"
    )


def save(rows: dict[str, dict[str, float]], about: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-predict.csv"
    with open(file, "w", newline="") as stream:
        stream.writelines(f"# {line}\n" for line in about.splitlines())
        writer = csv.writer(stream)
        writer.writerow(["candidate", *next(iter(rows.values()))])
        writer.writerows([name, *(f"{value:.4g}" for value in row.values())] for name, row in rows.items())
    print(f"{file} written")


if __name__ == "__main__":
    main()
