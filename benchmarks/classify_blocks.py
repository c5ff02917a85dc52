"""Compares attention blocks in a classifier: each is trained with each seed under one recipe.

    python benchmarks/classify_blocks.py --data cifar100 --seeds 3
    python benchmarks/classify_blocks.py --model test_resnet --stem imagenet --epochs 2 --seeds 2 --device cpu

The same command, given again, continues where it was interrupted. Do not run it twice at the same time with the same
OUT. It writes OUT/blocks.csv (the machine, then one row for each run) and OUT/blocks.md (means over seeds, and
differences to no block, paired by seed, with t intervals of a joint level of 95 %). The main figure is the top-1 of the
last epoch, on which nothing was chosen; that of the best epoch, as papers report it, is optimistic.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from yolov5_ema.comparing.intervals import bonferroni_confidence, paired_difference, summarize
from yolov5_ema.comparing.machine import cpu_name, torch_device
from yolov5_ema.files import write_whole

BASELINE = "none"
# names in the paper's Tables 1 and 4, and the options that make them
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("none", {}),
    "SE": ("SE", {}),
    "CBAM": ("CBAM", {}),
    "SA": ("SA", {}),
    "ECA": ("ECA", {}),
    "NAM": ("NAM", {}),
    "CA": ("CA", {}),
    "EMA_32": ("EMA", {"groups": 32}),
    "EMA_16": ("EMA", {"groups": 16}),
    "EMA_no": ("EMA", {"groups": 32, "cross_spatial": False}),
}


@dataclass
class Row:
    """One run. Accuracies are fractions."""

    variant: str
    seed: int
    parameters: int
    epochs: int
    top1_last: float
    top5_last: float
    top1_best: float
    best_epoch: int


def main() -> int:
    args, rest = _parser().parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for seed in range(args.seeds):  # seed by seed, so that the runs that are finished when it is interrupted form pairs
        for variant in args.blocks:
            if not _train(args, rest, variant, seed):
                failed.append(f"{variant}, seed {seed}")
    rows = [row for variant in args.blocks for seed in range(args.seeds) if (row := _read(args, variant, seed))]
    if not rows:
        print("no run is finished", file=sys.stderr)
        return 1
    write_whole(args.out / "blocks.csv", f"# {_machine(args.device)}\n{_as_csv(rows)}")
    table = _as_markdown(rows, args)
    write_whole(args.out / "blocks.md", table)
    print(f"\n{table}\n{args.out / 'blocks.csv'} and .md")
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _folder(args: argparse.Namespace, variant: str, seed: int) -> Path:
    return Path(args.out) / f"{variant}-{seed}"


def _train(args: argparse.Namespace, rest: Sequence[str], variant: str, seed: int) -> bool:
    """Train one run, or resume it; False if it failed."""
    folder = _folder(args, variant, seed)
    if (folder / "metrics.json").is_file():
        _check_same(args, folder)
        return True
    command = [sys.executable, "-m", "yolov5_ema", "classify", "train"]
    if (folder / "args.yaml").is_file():
        _check_same(args, folder)
        command += ["--resume", str(folder / "weights" / "last.ckpt"), "--device", args.device]
    else:
        block, options = VARIANTS[variant]
        command += ["--data", args.data, "--model", args.model, "--block", block, "--seed", str(seed)]
        command += ["--block-options", json.dumps(options), "--device", args.device, "--exist-ok"]
        command += ["--project", str(args.out), "--name", folder.name]
        command += ["--recipe", args.recipe] if args.recipe else []
        command += ["--epochs", str(args.epochs)] if args.epochs else []
        command += ["--set", f"stem={args.stem}"] if args.stem else []
        command += rest
    print(f"== {variant}, seed {seed}", flush=True)
    return subprocess.run(command, check=False).returncode == 0


def _check_same(args: argparse.Namespace, folder: Path) -> None:
    """Refuse a run that was trained with another recipe, because it could not be compared."""
    settings = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
    asked = {
        "data": args.data,
        "model": args.model,
        "epochs": args.epochs,
        "stem": args.stem,
        "recipe": args.recipe,
    }
    for key, value in asked.items():
        if value and settings[key] != value:
            sys.exit(f"{folder} was trained with {key} {settings[key]}, not {value}; choose another --out")


def _read(args: argparse.Namespace, variant: str, seed: int) -> Row | None:
    folder = _folder(args, variant, seed)
    if not (folder / "metrics.json").is_file():
        return None
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    with (folder / "results.csv").open(encoding="utf-8") as stream:
        epochs = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    best = max(epochs, key=lambda row: row["val/top1"])
    last = epochs[-1]
    return Row(
        variant=variant,
        seed=seed,
        parameters=metrics["parameters"],
        epochs=len(epochs),
        top1_last=last["val/top1"],
        top5_last=last["val/top5"],
        top1_best=best["val/top1"],
        best_epoch=int(best["epoch"]),
    )


def _machine(device: str) -> str:
    """The machine of this call; earlier calls may have used another one."""
    chosen = torch_device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{cpu_name()}, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _as_markdown(rows: Sequence[Row], args: argparse.Namespace) -> str:
    variants = [variant for variant in args.blocks if any(row.variant == variant for row in rows)]
    candidates = [variant for variant in variants if variant != BASELINE]
    confidence = bonferroni_confidence(0.95, max(1, len(candidates)))
    lines = [
        f"{args.model} on {args.data}, {rows[0].epochs} epochs, {args.seeds} seeds; top-1 and top-5 in per cent, "
        f"mean ± standard deviation over seeds. Differences to no block are of the last epoch's top-1, paired by seed; "
        f"each interval has the level {confidence:.1%}, so that all hold together with 95 %.",
        "",
        "| block | parameters | top-1, last epoch | top-5, last epoch | top-1, best epoch | difference | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    figures = {variant: _by_seed(rows, variant, "top1_last") for variant in variants}
    for variant in variants:
        own = [row for row in rows if row.variant == variant]
        cells = [variant, f"{own[0].parameters:,}"]
        cells += [_spread(_by_seed(rows, variant, key)) for key in ("top1_last", "top5_last", "top1_best")]
        cells += (
            _difference(figures[variant], figures.get(BASELINE, {}), confidence) if variant in candidates else ["", ""]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_seed(rows: Sequence[Row], variant: str, key: str) -> dict[int, float]:
    return {row.seed: 100 * getattr(row, key) for row in rows if row.variant == variant}


def _spread(figures: dict[int, float]) -> str:
    found = summarize(figures.values())
    return f"{found.mean:.2f}" + ("" if found.sd is None else f" ± {found.sd:.2f}")


def _difference(figures: dict[int, float], baseline: dict[int, float], confidence: float) -> list[str]:
    found = paired_difference(figures, baseline, confidence)
    if found is None:
        return ["", "no pair"]
    interval = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return [f"{found.mean:+.2f}{interval}", found.verdict]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Further flags are passed to every 'yolov5-ema classify train'.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", default="synthetic", help="as in classify train (default: synthetic)")
    parser.add_argument("--recipe", help="as in classify train (default: the one for the data)")
    parser.add_argument("--model", default="resnet50", help="(default: resnet50)")
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar", help="(default: cifar)")
    parser.add_argument("--epochs", type=int, help="(default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--blocks", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="(default: all)")
    parser.add_argument("--device", default="", help="as in classify train")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/classify-blocks"), help="(default: runs/classify-blocks)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
