"""Measures how long the program takes to start: processor time of whole processes, in turns with a reference.

python benchmarks/start.py --weights best.pt --source image.jpg --rounds 9
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import yolov5_ema
from yolov5_ema.comparing.machine import machine

HOME = Path(__file__).resolve().parent.parent
PROGRAM = ("-m", "yolov5_ema")


def main() -> None:
    args = parse_args()
    pairs = {
        "a block": (("-c", "import yolov5_ema; yolov5_ema.EMA"), ("-c", "import torch"), "import torch"),
        "train --help": ((*PROGRAM, "train", "--help"), ("-c", "import torch"), "import torch"),
    }
    if args.weights and args.source:
        files = ("--weights", str(args.weights.resolve()), "--source", str(args.source.resolve()))
        predict = (*PROGRAM, "predict", "--runtime", "torch", "--force", "-o", "out.json", *files)
        pairs["predict of one image"] = (predict, ("-c", "import torch, cv2"), "import torch, cv2")
        kept = tempfile.TemporaryDirectory()
        loading = f"import torch, cv2; torch.load({str(tensors_of(args.weights, Path(kept.name)))!r})"
        pairs["the same"] = (predict, ("-c", loading), "that and its tensors")
    here = machine(torch.device("cpu"))
    print(f"{here['device']}, {here['cores']} cores, load {here['load']}; processor time, medians of {args.rounds}\n")
    for name, (candidate, reference, text) in pairs.items():
        with tempfile.TemporaryDirectory() as folder:
            rounds = [(seconds(candidate, folder), seconds(reference, folder)) for _ in range(args.rounds + 1)][1:]
        ours, theirs = (statistics.median(taken) for taken in zip(*rounds))
        ratio = statistics.median(one / other for one, other in rounds)
        print(f"{name:<24}{ours:>7.2f} s{theirs:>7.2f} s for {text:<20}{ratio:>7.2f} times")


def tensors_of(weights: Path, folder: Path) -> Path:
    """A file with the tensors of a checkpoint, which loads without the classes of a program."""
    file = folder / "tensors.pt"
    model = yolov5_ema.load(weights, "cpu")
    torch.save(model.state_dict(), file)
    return file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a checkpoint, to measure predict too")
    parser.add_argument("--source", type=Path, help="an image, to measure predict too")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def seconds(arguments: tuple[str, ...], folder: str) -> float:
    """The processor time of a Python process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(HOME), "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
