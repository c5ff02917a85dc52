"""Measures what EMA costs in an exported YOLOv5s, with onnxruntime on this machine's CPU.

Exports plain YOLOv5s, the same with EMA, and with EMA in the paper's form step by step ("reference"), with
`yolov5-ema export` and random weights, and runs the three files in turns: batch 1, float32, random image, without NMS.
Times are medians with quartiles; a ratio is the median, over rounds, of a file's time divided by that of the plain file
in the same round. `--save` writes a CSV.

    python benchmarks/onnx_export.py
    python benchmarks/onnx_export.py --imgsz 320 --threads 1 --save
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.cli.main import main as yolov5_ema
from yolov5_ema.comparing.machine import machine, software
from yolov5_ema.engine import shim
from yolov5_ema.kernels.dispatch import forced

WARM_UP = 3
CANDIDATES = {
    "yolov5s": ("none", "exact"),
    "yolov5s-ema": ("EMA", "exact"),
    "yolov5s-ema reference": ("EMA", "reference"),
}
Row = dict[str, Any]


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: exported(Path(folder) / f"{name.replace(' ', '-')}.pt", *how, args.imgsz)
            for name, how in CANDIDATES.items()
        }
        sessions = {name: session(file, args.threads) for name, file in files.items()}
    rows = summary(measured(sessions, args.imgsz, args.rounds))
    print_rows(rows, args)
    if args.save:
        save(rows, args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=640, help="image size in pixels")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of onnxruntime")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-onnx-cpu.csv")
    return parser.parse_args()


def exported(weights: Path, block: str, implementation: str, imgsz: int) -> Path:
    """The ONNX file of YOLOv5s with a block, made by the command that a user would type."""
    with quiet():
        save_checkpoint(weights, block)
    said = io.StringIO()
    with forced(implementation), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = yolov5_ema(
            ["export", "--weights", str(weights), "--include", "onnx", "--img", str(imgsz), "--device", "cpu"]
        )
    if code:
        raise SystemExit(said.getvalue())
    return weights.with_suffix(".onnx")


def save_checkpoint(file: Path, block: str) -> None:
    engine = shim.install()
    yolo = engine.module("models.yolo")
    model = yolo.Model(build_cfg(size="s", block=block))
    model.nc, model.names = 80, [f"class{i}" for i in range(80)]
    torch.save({"epoch": -1, "model": model.half(), "ema": None, "updates": None, "optimizer": None}, file)


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # otherwise the threads of one session spin on while the next session runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def measured(sessions: dict[str, onnxruntime.InferenceSession], imgsz: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by name, one figure for each round; each round starts with the next candidate."""
    image = np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    for turn in range(-WARM_UP, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            sessions[name].run(None, {"images": image})
            if turn >= 0:
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


def summary(times: dict[str, list[float]]) -> list[Row]:
    plain = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio_low, ratio, ratio_high = statistics.quantiles([a / b for a, b in zip(values, plain)], n=4)
        row = {"model": name, "median_ms": median, "quartile1_ms": low, "quartile3_ms": high}
        rows.append({**row, "ratio": ratio, "ratio_quartile1": ratio_low, "ratio_quartile3": ratio_high})
    return rows


def where(args: argparse.Namespace) -> str:
    here = machine(torch.device("cpu"))
    versions = {"onnxruntime": onnxruntime.__version__, **software(shim.install())}
    return (
        f"{here['device']}, {here['cores']} cores, {args.threads} threads, load {here['load']}, {here['system']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{args.imgsz} x {args.imgsz}, {args.rounds} rounds"
    )


def print_rows(rows: list[Row], args: argparse.Namespace) -> None:
    print(f"{where(args)}\n")
    print(f"{'':<24}{'median ms':>10}{'quartiles':>20}{'ratio':>8}{'quartiles':>18}")
    for row in rows:
        quartiles = f"{row['quartile1_ms']:.1f} - {row['quartile3_ms']:.1f}"
        ratios = f"{row['ratio_quartile1']:.3f} - {row['ratio_quartile3']:.3f}"
        print(f"{row['model']:<24}{row['median_ms']:>10.1f}{quartiles:>20}{row['ratio']:>8.3f}{ratios:>18}")


def save(rows: list[Row], args: argparse.Namespace) -> None:
    file = Path(__file__).parent / "results" / f"{datetime.date.today()}-onnx-cpu.csv"
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as stream:
        stream.write(f"# {where(args)}\n")
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
