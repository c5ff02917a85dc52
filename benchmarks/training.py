"""Measures one epoch of the demo's training on the CPU, alone and beside busy processes.

The candidates differ in how threads wait, and in whether freed memory is kept. They take turns, first alone and then
beside processes that compute without a pause. The seconds are those between the lines "Starting training" and "epochs
completed" of YOLOv5, so the start of the program is not in them.

    python benchmarks/training.py --rounds 3
    python benchmarks/training.py --busy 0 1 4 --only default sleep --save   # alone, beside one process, beside four
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from yolov5_ema.cli.demo import BATCH_SIZE, CFG, HYP, IMGSZ, TRAIN_IMAGES, VAL_IMAGES
from yolov5_ema.comparing.machine import machine, software
from yolov5_ema.data.demo import generate
from yolov5_ema.upstream.locate import locate

# Each of these variables leaves a choice to the user. GCC's OpenMP ignores KMP_BLOCKTIME, and for LLVM's this is the
# default; tcache_count has its default, too, but any variable of the allocator lets it give freed memory back.
GIVEN_BACK = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
SLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


class Candidate(NamedTuple):
    words: str
    variables: dict[str, str]


CANDIDATES = {
    "itself": Candidate("as YOLOv5 does by itself", {"KMP_BLOCKTIME": "200", **GIVEN_BACK}),
    "default": Candidate("as every command does", {}),
    "sleep": Candidate("threads sleep", SLEEP),
    "spin-300": Candidate("threads spin 300 times (GCC's OpenMP)", {"GOMP_SPINCOUNT": "300"}),
    "one-thread": Candidate("one thread", {"OMP_NUM_THREADS": "1", **SLEEP}),
    "given-back": Candidate("threads sleep, freed memory is given back", {**SLEEP, **GIVEN_BACK}),
}
HOME = Path(__file__).resolve().parent.parent


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        seconds = measured(args, Path(name))
    about = described(args)
    print(f"\n{about}\n")
    rows = [
        (
            state,
            CANDIDATES[name].words,
            statistics.median(taken),
            statistics.median(map(over, by_name[args.only[0]], taken)),
        )
        for state, by_name in seconds.items()
        for name, taken in by_name.items()
    ]
    for state, candidate, epoch_s, ratio in rows:
        print(f"{state:<24}{candidate:<42}{epoch_s:>8.1f} s{ratio:>8.2f} times as fast")
    if args.save:
        save(rows, about, args.img)


def over(reference: float, candidate: float) -> float:
    return reference / candidate


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--img", type=int, default=IMGSZ)
    parser.add_argument("--busy", type=int, nargs="+", default=(0, 1), help="numbers of busy processes (default: 0 1)")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME", help=names())
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-training-PIXELS.csv")
    return parser.parse_args()


def names() -> str:
    return "candidates, each compared with the first (default: all): " + "; ".join(
        f"{name}: {found.words}" for name, found in CANDIDATES.items()
    )


def measured(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """The seconds of an epoch for each state of the machine and each candidate's name."""
    data = generate(folder / "set", seed=0, train=TRAIN_IMAGES, val=VAL_IMAGES, test=1, imgsz=IMGSZ)
    epoch_s(folder, data, args.img, {})  # writes the caches of labels
    seconds = {state(count): {name: [] for name in args.only} for count in args.busy}
    for _ in range(args.rounds):
        for count in args.busy:
            with busy_processes(count):
                for name in args.only:
                    taken = epoch_s(folder, data, args.img, CANDIDATES[name].variables)
                    print(f"{state(count)}, {CANDIDATES[name].words}: {taken:.1f} s", flush=True)
                    seconds[state(count)][name].append(taken)
    return seconds


def state(busy: int) -> str:
    """Say what else the machine does."""
    return "alone" if not busy else "beside a busy process" if busy == 1 else f"beside {busy} busy processes"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def epoch_s(folder: Path, data: Path, imgsz: int, variables: dict[str, str]) -> float:
    """Train for one epoch with the flags of the demo, and return the seconds of the epoch with its validation."""
    model = ["--cfg", CFG, "--weights", "", "--hyp", HYP, "--img", str(imgsz), "--batch-size", str(BATCH_SIZE)]
    haste = ["--epochs", "1", "--noautoanchor", "--cache", "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "yolov5_ema", "train", "--data", str(data), *model, *haste, "--exist-ok"]
    environment = {**os.environ, "PYTHONPATH": str(HOME), "PYTHONUNBUFFERED": "1", **variables}
    marks, lines = {}, []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for mark in ("Starting training for", "epochs completed in"):
                if mark in line:
                    marks[mark] = time.perf_counter()
    if process.returncode or len(marks) < 2:
        sys.exit(f"train failed: {''.join(lines[-30:])}")
    began_s, ended_s = marks.values()
    return ended_s - began_s


def described(args: argparse.Namespace) -> str:
    here = machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {version}" for name, version in software(locate()).items())
    return (
        f"{here['device']}, {here['cores']} cores, load {here['load']} at the end; {versions}\n"
        f"{TRAIN_IMAGES} images for training and {VAL_IMAGES} for validation at {args.img} pixels, {CFG}, batch "
        f"{BATCH_SIZE}; medians of {args.rounds} rounds, ratios within a round"
    )


def save(rows: list[tuple[str, str, float, float]], about: str, imgsz: int) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{datetime.date.today()}-training-{imgsz}.csv", "w", newline="") as stream:
        stream.writelines(f"# {line}\n" for line in about.splitlines())
        writer = csv.writer(stream)
        writer.writerow(("machine", "candidate", "epoch_s", "times_as_fast"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
