"""Measures what an attention block costs on this machine: by itself, and in a whole YOLOv5s.

Ratios compare with the same computation without the block in the same run. Times are medians with quartiles over rounds
in which the candidates take turns. `--save` writes a CSV to benchmarks/results.

    python benchmarks/block_cost.py
    python benchmarks/block_cost.py --device cuda --save
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import yolov5_ema
from yolov5_ema.blocks import create_block, list_blocks

SHAPES = ((8, 512, 20, 20), (4, 256, 40, 40), (1, 320, 160, 160))
Row = dict[str, Any]


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    rows = [*block_rows(args), *model_rows(args)]
    print_rows(rows, args.device)
    if args.save:
        save(rows, args.device)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imgsz", type=int, default=320, help="image size of the whole models in pixels")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-HOST-DEVICE.csv")
    return parser.parse_args()


def block_rows(args: argparse.Namespace) -> list[Row]:
    """Each block by itself; the reference is one element-wise pass over the map, x * 0.5."""
    rows = []
    for shape in SHAPES:
        x = torch.rand(shape, device=args.device, requires_grad=True)
        candidates: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"x * 0.5": lambda x: x * 0.5}
        for name in list_blocks():
            try:
                candidates[name] = create_block(name, shape[1], device=args.device)
            except ValueError as error:
                print(f"{name} at {shape}: {error}")
        rows += measured(candidates, x, "x".join(map(str, shape)), args)
    return rows


def model_rows(args: argparse.Namespace) -> list[Row]:
    """YOLOv5s with a block after the last two C3 of the backbone; the reference is YOLOv5s."""
    from yolov5_ema.cfgs.dry_run import quiet
    from yolov5_ema.cfgs.generator import build_cfg

    x = torch.rand(1, 3, args.imgsz, args.imgsz, device=args.device)
    candidates: dict[str, Callable[[torch.Tensor], Any]] = {}
    with yolov5_ema.installed(), quiet():
        from yolov5.models.yolo import Model

        for block in ("none", *list_blocks()):
            candidates[block] = Model(build_cfg(size="s", block=block)).to(args.device).train()
        return measured(candidates, x, f"yolov5s {args.imgsz}", args)


def measured(candidates: dict[str, Any], x: torch.Tensor, what: str, args: argparse.Namespace) -> list[Row]:
    """Measure the times of inference and of a training step for every candidate, in turns."""
    rows = []
    for phase, step in (("inference", inference), ("training", training)):
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for candidate in candidates.values():
            if isinstance(candidate, torch.nn.Module):
                candidate.train(phase == "training")
        for warm_up in (True, *[False] * args.rounds):
            for name, candidate in candidates.items():
                elapsed_ms = timed_ms(step, candidate, x, args.device)
                if not warm_up:
                    times[name].append(elapsed_ms)
        reference = statistics.median(next(iter(times.values())))
        for name, values in times.items():
            low, median, high = statistics.quantiles(values, n=4)
            row = {"what": what, "phase": phase, "candidate": name, "median_ms": median}
            rows.append({**row, "quartile1_ms": low, "quartile3_ms": high, "ratio": median / reference})
    return rows


def timed_ms(step: Callable[..., None], candidate: Any, x: torch.Tensor, device: str) -> float:
    synchronize(device)
    started = time.perf_counter()
    step(candidate, x)
    synchronize(device)
    return (time.perf_counter() - started) * 1e3


def inference(candidate: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        candidate(x)


def training(candidate: Any, x: torch.Tensor) -> None:
    out = candidate(x)
    sum(part.float().mean() for part in (out if isinstance(out, list) else [out])).backward()


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> str:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {torch.get_num_threads()} CPU threads, {versions}"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def print_rows(rows: list[Row], device: str) -> None:
    print(f"{machine(device)}\n")
    print(f"{'':<16}{'':<11}{'':<10}{'median ms':>10}{'quartiles':>18}{'ratio':>8}")
    for row in rows:
        quartiles = f"{row['quartile1_ms']:.2f} - {row['quartile3_ms']:.2f}"
        print(
            f"{row['what']:<16}{row['phase']:<11}{row['candidate']:<10}{row['median_ms']:>10.2f}{quartiles:>18}"
            f"{row['ratio']:>8.2f}"
        )


def save(rows: list[Row], device: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{datetime.date.today()}-{device.replace(':', '')}.csv"
    with file.open("w", newline="") as stream:
        stream.write(f"# {machine(device)}\n")
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
