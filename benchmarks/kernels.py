"""Measures the blocks' implementations on this machine: a block alone, the memory for backward, and whole detectors.

Every candidate runs once in each round, and each round starts with the next candidate. Times are medians with
quartiles. Ratios are medians over the rounds. They compare with the reference (the paper's form, eager) or with the
detector without EMA in the same round. Blocks are also compared with a copy of X, the limit set by the memory's speed,
whose time includes the allocation of its result as that of a block does. With `--threads 1` processor time is measured
instead of time, so that other processes disturb less.

    python benchmarks/kernels.py                # blocks and detectors, without torch.compile
    python benchmarks/kernels.py --compile --save
    python benchmarks/kernels.py --parts blocks --blocks EMA CBAM CA SA SE ECA NAM --threads 1 --copy-only --save
    python benchmarks/kernels.py --parts options --threads 1 --save     # EMA's options against the published block
    python benchmarks/kernels.py --device cuda --compile --save
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import yolov5_ema
from yolov5_ema.allocator import keep_freed_memory
from yolov5_ema.blocks import create_block
from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.comparing.machine import cpu_name
from yolov5_ema.kernels import dispatch

SHAPES = (
    (8, 512, 20, 20),
    (16, 256, 40, 40),
    (4, 640, 40, 40),
    (4, 320, 80, 80),
    (1, 320, 160, 160),
    (8, 256, 56, 56),
)
PARTS = ("blocks", "options", "detectors")
BLOCKS = ("EMA", "CBAM", "CA", "SA", "SE", "ECA", "NAM")
COPY = "copy of X"
PUBLISHED = "published"
OPTIONS: dict[str, dict[str, Any]] = {
    PUBLISHED: {},
    "norm_groups=1": {"norm_groups": 1},
    "residual": {"residual": True},
    "depthwise": {"depthwise": True},
}
# name, recipe, place of EMA, and the side of the image in pixels on a CPU
DETECTORS = (
    ("yolov5s-ema", {"size": "s"}, "backbone", 640),
    ("yolov5x-ema-tph", {"size": "x", "head": "p2"}, "neck", 320),
)
Row = dict[str, Any]


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    keep_freed_memory()  # as every command does
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{machine(args.device)}\n")
    rows = []
    if "blocks" in args.parts:
        for block in args.blocks:
            for shape in SHAPES:
                rows += block_rows(block, shape, args)
    if "options" in args.parts:
        for shape in SHAPES:
            rows += option_rows(shape, args)
    if "detectors" in args.parts:
        for detector in DETECTORS:
            rows += detector_rows(*detector, args)
    if args.save:
        part = "" if len(args.parts) > 1 else f"-{args.parts[0]}"
        threads = f"-{args.threads}-threads" if args.threads else ""
        save(rows, args.device, f"kernels{part}-{args.device.replace(':', '')}{threads}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["blocks", "detectors"])
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=["EMA"])
    parser.add_argument("--threads", type=int, help="threads of torch and of the kernels; 1 measures processor time")
    parser.add_argument("--copy-only", action="store_true", help="the blocks' kernels and a copy of X, nothing else")
    parser.add_argument("--rounds", type=int, default=9, help="rounds for each block and detector")
    parser.add_argument("--compile", action="store_true", help="also the two plain forms with torch.compile")
    parser.add_argument("--imgsz", type=int, help="image size of the detectors in pixels (default: what a CPU can do)")
    parser.add_argument("--batch", type=int, default=1, help="batch size of the detectors' training steps")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-kernels-DEVICE.csv")
    return parser.parse_args()


# -- the block --


def block_rows(title: str, shape: tuple[int, ...], args: argparse.Namespace) -> list[Row]:
    """Every implementation at one shape that the block can have."""
    try:
        block = create_block(title, shape[1], device=args.device)
    except ValueError as error:
        print(f"{title} {'x'.join(map(str, shape))}: {error}")
        return []
    x = torch.randn(shape, device=args.device, requires_grad=True)
    grad = torch.randn(shape, device=args.device)
    kernel = dispatch.choose(title, "auto", x.device, x.dtype).name
    names = [kernel] if args.copy_only else list(dict.fromkeys(["reference", "exact", kernel]))
    candidates: dict[str, Callable[..., Any]] = {name: by(name, block) for name in names}
    if args.compile:
        for name in ("reference", "exact"):
            candidates[f"{name}, compiled"] = by(name, torch.compile(block, dynamic=False))
    kept = {name: saved_bytes(candidates[name], x) / (x.numel() * x.element_size()) for name in names}

    what = f"{title} {'x'.join(map(str, shape))}"
    rows = []
    for phase, step in (("inference", inference), ("training", training)):
        block.train(phase == "training")
        steps = {name: (lambda f=f, step=step: step(f, x, grad)) for name, f in candidates.items()}
        steps[COPY] = lambda: inference(torch.clone, x, grad)
        rows += measured(steps, what, phase, COPY if args.copy_only else "reference", args.rounds, args.device)
    for name, times in kept.items():
        rows.append({"what": what, "phase": "kept for backward", "candidate": name, "ratio": times})
        print(f"{what:<24}{'kept for backward':<18}{name:<21}{times:>28.3f} x the input")
    torch.compiler.reset()
    return rows


def option_rows(shape: tuple[int, ...], args: argparse.Namespace) -> list[Row]:
    """EMA with each of its options beyond the paper, compared with the published block."""
    x = torch.randn(shape, device=args.device, requires_grad=True)
    grad = torch.randn(shape, device=args.device)
    blocks = {name: create_block("EMA", shape[1], device=args.device, **given) for name, given in OPTIONS.items()}
    rows = []
    for phase, step in (("inference", inference), ("training", training)):
        steps = {name: (lambda f=f, step=step: step(f, x, grad)) for name, f in blocks.items()}
        rows += measured(steps, f"EMA {'x'.join(map(str, shape))}", phase, PUBLISHED, args.rounds, args.device)
    return rows


def by(name: str, block: Callable[..., Any]) -> Callable[..., Any]:
    """``block``, run with one implementation."""

    def run(x: torch.Tensor) -> Any:
        with dispatch.forced(name):
            return block(x)

    return run


def inference(candidate: Callable[..., Any], x: torch.Tensor, _grad: torch.Tensor) -> None:
    with torch.no_grad():
        candidate(x.detach())


def training(candidate: Callable[..., Any], x: torch.Tensor, grad: torch.Tensor) -> None:
    x.grad = None
    candidate(x).backward(grad)


def saved_bytes(candidate: Callable[..., Any], x: torch.Tensor, parameters: set[int] = frozenset()) -> int:  # type: ignore[assignment]
    """The bytes that autograd keeps between forward and backward, without ``parameters``; each storage counts once."""
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = candidate(x)
    del kept
    return sum(sizes.values())


# -- whole detectors --


def detector_rows(name: str, recipe: dict[str, Any], place: str, imgsz: int, args: argparse.Namespace) -> list[Row]:
    """A detector with EMA, with the kernels and with the reference, compared with the same cfg without the EMA rows."""
    imgsz = args.imgsz or imgsz
    kernel = dispatch.choose("EMA", "auto", torch.device(args.device).type, torch.float32).name
    with yolov5_ema.installed(), quiet():
        yolo = importlib.import_module("yolov5.models.yolo")
        plain = yolo.Model(build_cfg(block="none", **recipe)).to(args.device)
        with_ema = yolo.Model(build_cfg(block="EMA", at=place, **recipe)).to(args.device)
    candidates = {"no EMA": plain, kernel: by(kernel, with_ema), "reference": by("reference", with_ema)}
    x = torch.rand(args.batch, 3, imgsz, imgsz, device=args.device)
    rows = []
    for phase, step in (("inference", detect), ("training", train)):
        image = x[:1] if phase == "inference" else x
        for model in (plain, with_ema):
            model.train(phase == "training")
        steps = {name: (lambda f=f, step=step, image=image: step(f, image)) for name, f in candidates.items()}
        what = f"{name} {imgsz} x{len(image)}"
        rows += measured(steps, what, phase, "no EMA", args.rounds, args.device)
    rows += memory_rows(name, plain, with_ema, args)
    return rows


def memory_rows(name: str, plain: nn.Module, with_ema: nn.Module, args: argparse.Namespace) -> list[Row]:
    """The GPU's peak memory in a training step at 640 pixels, batch 4; without a GPU, the bytes that autograd keeps."""
    what = f"{name} 640 x4"
    on_gpu = args.device.startswith("cuda")
    figure = peak_bytes if on_gpu else kept_bytes
    phase = "peak GPU memory" if on_gpu else "kept for backward"
    found = {
        "no EMA": figure(plain, args.device),
        "exact": with_implementation("exact", figure, with_ema, args.device),
        "reference": with_implementation("reference", figure, with_ema, args.device),
    }
    if on_gpu:
        found["triton"] = with_implementation("triton", figure, with_ema, args.device)
    rows = []
    for candidate, size in found.items():
        ratio = size / found["no EMA"]
        rows.append({"what": what, "phase": phase, "candidate": candidate, "ratio": ratio, "bytes": size})
        print(f"{what:<24}{phase:<18}{candidate:<21}{size / 2**20:>20.1f} MiB{ratio:>12.3f}")
    return rows


def with_implementation(name: str, figure: Callable[..., int], model: nn.Module, device: str) -> int:
    with dispatch.forced(name):
        return figure(model, device)


def peak_bytes(model: nn.Module, device: str) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(model.train(), torch.rand(4, 3, 640, 640, device=device))
    return torch.cuda.max_memory_allocated()


def kept_bytes(model: nn.Module, _device: str) -> int:
    """On the meta device, where every implementation keeps what ``exact`` keeps."""
    model = model.to("meta").train()
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    return saved_bytes(model, torch.zeros(4, 3, 640, 640, device="meta"), parameters)


def detect(model: Callable[..., Any], x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def train(model: Callable[..., Any], x: torch.Tensor) -> None:
    sum(scale.float().square().mean() for scale in model(x)).backward()


# -- measuring and writing down --


def measured(
    steps: dict[str, Callable[[], None]], what: str, phase: str, base: str, rounds: int, device: str
) -> list[Row]:
    """Measure the steps in turns. Ratios are ``base`` over the candidate for blocks; the inverse for detectors."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    # with one thread on a CPU, what other processes do costs no processor time
    clock = time.process_time if torch.get_num_threads() == 1 and device == "cpu" else time.perf_counter
    for turn in range(-2, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            synchronize(device)
            started_s = clock()
            steps[name]()
            synchronize(device)
            if turn >= 0:
                times[name].append((clock() - started_s) * 1e3)
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(mine / other for mine, other in zip(values, times[base]))
        ratio = 1 / ratio if base == "reference" else ratio
        row: Row = {"what": what, "phase": phase, "candidate": name, "median_ms": median}
        rows.append({**row, "quartile1_ms": low, "quartile3_ms": high, "ratio": ratio})
        copies = ""
        if COPY in times:
            rows[-1]["copies"] = statistics.median(mine / other for mine, other in zip(values, times[COPY]))
            copies = f", {rows[-1]['copies']:.2f} copies of X"
        sense = "times as fast" if base == "reference" else "times as long"
        print(
            f"{what:<24}{phase:<10}{name:<21}{median:>10.2f} ms  ({low:.2f} - {high:.2f})"
            f"{ratio:>9.3f} {sense} as {base}{copies}",
            flush=True,
        )
    return rows


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> str:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name}, {torch.get_num_threads()} CPU threads, {versions}"


def save(rows: list[Row], device: str, name: str) -> None:
    folder = Path(__file__).parent / "results"
    file = folder / f"{datetime.date.today()}-{name}.csv"
    fields = ("what", "phase", "candidate", "median_ms", "quartile1_ms", "quartile3_ms", "ratio", "copies", "bytes")
    with file.open("w", newline="") as stream:
        stream.write(f"# {machine(device)}\n")
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    plot(rows, file.with_suffix(".png"), machine(device))
    print(f"written to {file}")


def plot(rows: list[Row], file: Path, title: str) -> None:
    """How many times faster than the reference every candidate is, at each shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    blocks = [row for row in rows if row["what"].startswith("EMA ") and row["phase"] in ("inference", "training")]
    blocks = [row for row in blocks if row["candidate"] != COPY]
    if not any(row["candidate"] == "reference" for row in blocks):
        return
    shapes = list(dict.fromkeys(row["what"] for row in blocks))
    names = [name for name in dict.fromkeys(row["candidate"] for row in blocks) if name != "reference"]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
    for axis, phase in zip(axes, ("inference", "training")):
        for index, name in enumerate(names):
            found = {row["what"]: row["ratio"] for row in blocks if (row["candidate"], row["phase"]) == (name, phase)}
            places = [place + (index + 0.5) / (len(names) + 1) - 0.5 for place in range(len(shapes))]
            bars = axis.bar(places, [found[shape] for shape in shapes], 1 / (len(names) + 1.5), label=name)
            axis.bar_label(bars, fmt="%.1f", fontsize=7)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(shapes)), [shape.split()[1] for shape in shapes], fontsize=8)
        axis.set_title("inference" if phase == "inference" else "training step")
    axes[0].set_ylabel("times as fast as the reference, eager")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"EMA, 32 groups, float32: {title}", fontsize=9)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
