"""Measures ``yolov5-ema compare --jobs 2``: two trainings at once with half the cores each, against one after another.

A yolov5n with EMA and one with CA train on the demo's images, whole commands in turns. Two epochs and six show what an
epoch takes without the start of the processes.

    python benchmarks/jobs.py --rounds 3 --save
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
from pathlib import Path

import torch
from training import HOME

from yolov5_ema.cfgs.generator import format_cfg
from yolov5_ema.cli.demo import BATCH_SIZE, CFG, HYP, IMGSZ, TRAIN_IMAGES, VAL_IMAGES
from yolov5_ema.comparing.machine import machine, software
from yolov5_ema.data.demo import generate
from yolov5_ema.upstream.locate import locate

EPOCHS = (2, 6)
JOBS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-jobs.csv")
    args = parser.parse_args()
    taken: dict[tuple[int, int], list[float]] = {(jobs, epochs): [] for jobs in JOBS for epochs in EPOCHS}
    with tempfile.TemporaryDirectory() as name:
        data = generate(Path(name, "set"), seed=0, train=TRAIN_IMAGES, val=VAL_IMAGES, test=1, imgsz=IMGSZ)
        for turn in range(args.rounds):
            for jobs, epochs in taken:
                taken[jobs, epochs].append(compared_s(Path(name, f"{turn}-{jobs}-{epochs}"), data, jobs, epochs))
    rows = [(jobs, *figures(taken, jobs)) for jobs in JOBS]
    here = machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {version}" for name, version in software(locate()).items())
    about = f"{here['device']}, {here['cores']} cores, load {here['load']} at the end; {versions}; {args.rounds} rounds"
    print(f"{about}\n")
    for jobs, whole_s, epoch_s in rows:
        ratio = rows[0][2] / epoch_s
        print(
            f"--jobs {jobs}: {whole_s:6.1f} s for {max(EPOCHS)} epochs of two models ({rows[0][1] / whole_s:.2f} times "
            f"as fast), {epoch_s:5.1f} s for one more epoch ({ratio:.2f} times)"
        )
    if args.save:
        file = Path(__file__).parent / f"results/{datetime.date.today()}-jobs.csv"
        with open(file, "w", newline="") as stream:
            stream.write(f"# {about}\n")
            csv.writer(stream).writerows([("jobs", "whole_s", "epoch_s"), *rows])


def figures(taken: dict[tuple[int, int], list[float]], jobs: int) -> tuple[float, float]:
    """The median of the whole command in seconds, and what one more epoch of both models takes."""
    few, many = (statistics.median(taken[jobs, epochs]) for epochs in EPOCHS)
    return many, (many - few) / (max(EPOCHS) - min(EPOCHS))


def compared_s(folder: Path, data: Path, jobs: int, epochs: int) -> float:
    """Train both models, and return the seconds of the whole command."""
    folder.mkdir()
    recipe = ("--hyp", HYP, "--img", IMGSZ, "--batch", BATCH_SIZE, "--epochs", epochs, "--noval", "--workers", 0)
    cfgs = (CFG, folder / "yolov5n-ca.yaml")
    cfgs[1].write_text(format_cfg(size="n", block="CA", nc=3))
    command = ("compare", "--data", data, "--cfgs", *cfgs, "--seeds", 1, "--jobs", jobs, "--latency-rounds", 0)
    words = [sys.executable, "-m", "yolov5_ema", *map(str, (*command, *recipe, "--noautoanchor", "--cache"))]
    began_s = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run([*words, "--device", "cpu"], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
