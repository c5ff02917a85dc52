"""Trains what docs/results.md compares: blocks, heads, windows, places of a block, forms of EMA, starts of a block.

All models have the width of yolov5n. Every question is a paired difference over seeds. What was trained is kept in
--folder; the same command goes on after an interruption, and another run with more --seeds adds to it. So does another
machine with --known, which takes the figures of finished trainings from the CSV that a run wrote.

    python benchmarks/evidence.py --bccd bccd.yaml --aerial aerial_cars.yaml
    python benchmarks/evidence.py --bccd bccd.yaml --aerial aerial_cars.yaml --known DATE-evidence-runs.csv --seeds 20
    python benchmarks/evidence.py --report      # only the table, the CSV and the picture, from what is finished
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from yolov5_ema.comparing.intervals import Difference, bonferroni_confidence, paired_difference
from yolov5_ema.comparing.machine import machine, software
from yolov5_ema.comparing.runs import FINISHED, Record, Run, record_of
from yolov5_ema.comparing.scoring import FIGURES
from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.upstream.locate import locate

HERE = Path(__file__).resolve().parent
METRICS = {"map50": "mAP50", "map50_95": "mAP50-95"}
RECIPE = ("training", "data", "epochs", "imgsz", "batch", "hyp")
"""Columns that say how a model was trained; hyp is the beginning of the SHA-256 of the hyperparameters."""
WHOLE = {"whole_map50": "mAP50", "whole_map50_95": "mAP50-95"}
"""Columns for the figures on whole photographs, and their names in the JSON file of `evaluate`."""
BLOCKS = ("EMA", "CA", "CBAM", "SE", "ECA", "SA", "NAM")


class Training(NamedTuple):
    """Trainings with one recipe.

    Attributes:
        data: ``bccd``, ``aerial``, or ``windows``: those that are cut from the aerial photographs.
        cfgs: the flags of ``yolov5-ema cfg`` for each model.
        epochs: number of epochs.
        imgsz: side of the images in pixels.
        batch: images in a batch.
        seeds: the number of seeds, if --seeds does not give one.
        whole: flags of ``evaluate`` with which a model is scored on whole aerial photographs; empty: `compare`'s own
            score counts.
        flags: more flags of ``train``.
        peak_lr: the highest learning rate.
        hyp: hyperparameters that differ from hyp.evidence.yaml.
    """

    data: str
    cfgs: Mapping[str, Sequence[str]]
    epochs: int
    imgsz: int
    batch: int
    seeds: int
    whole: Sequence[str] = ()
    flags: Sequence[str] = ()
    peak_lr: float = 0.05
    hyp: Mapping[str, float] = {}


class Question(NamedTuple):
    """A difference between two models, each named by its training and its name there."""

    letter: str
    candidate: tuple[str, str]
    baseline: tuple[str, str]
    words: str


def block(name: str, *flags: str) -> Sequence[str]:
    return ("--block", name, *flags)


NONE = {"yolov5n": block("none")}
BOTH_HEADS = {**NONE, "yolov5n-p2": block("none", "--head", "p2")}
TWO_BLOCKS = {"yolov5n-ema": block("EMA"), "yolov5n-cbam": block("CBAM")}
SMALL = (30, 160, 8)
"""Epochs, pixels and batch size of most trainings on BCCD."""
AERIAL = {"cls": 0.5, "warmup_bias_lr": 0.01}
"""Hyperparameters for both trainings on aerial photographs, besides obj."""
# WINDOW_EPOCHS of 1,191 windows, four at a time, are as many steps as PHOTOGRAPH_EPOCHS of 84 photographs, one at a
# time, and as many pixels. YOLOv5 multiplies obj by (imgsz / 640)², so that both have one weight of objectness; and
# it multiplies the loss by the batch, so that one photograph needs four times the rate for a step of the same length.
WINDOW_EPOCHS, PHOTOGRAPH_EPOCHS = 10, 35
TRAININGS = {
    "blocks": Training("bccd", {**NONE, **{f"yolov5n-{name.lower()}": block(name) for name in BLOCKS}}, *SMALL, 10),
    "variants": Training(
        "bccd",
        {
            "yolov5n-ema-neck": block("EMA", "--at", "neck"),
            "yolov5n-ema-reference": block("EMA", "--option", "implementation=reference"),
        },
        *SMALL,
        10,
    ),
    "windows": Training(
        "windows",
        BOTH_HEADS,
        *(WINDOW_EPOCHS, 320, 4, 3),
        whole=("--img", "320", "--slice", "320"),
        peak_lr=0.06,
        hyp={"obj": 1.0, **AERIAL},
    ),
    "whole": Training(
        "aerial",
        BOTH_HEADS,
        *(PHOTOGRAPH_EPOCHS, 640, 1, 3),
        whole=("--img", "640"),
        peak_lr=0.24,
        hyp={"obj": 0.25, **AERIAL},
    ),
    "fresh": Training("bccd", TWO_BLOCKS, *(10, 160, 8, 5), flags=("--weights", "{start}")),
    "identity": Training("bccd", TWO_BLOCKS, *(10, 160, 8, 5), flags=("--weights", "{start}", "--init", "identity")),
}
START = ("windows", "yolov5n", 0)
"""The detector, trained on the other set, that ``fresh`` and ``identity`` start from."""

QUESTIONS = (
    *(
        Question("a", ("blocks", f"yolov5n-{name.lower()}"), ("blocks", "yolov5n"), f"{name} against no block")
        for name in BLOCKS
    ),
    Question("b", ("windows", "yolov5n-p2"), ("windows", "yolov5n"), "P2 head against P3 head, in windows"),
    Question("b", ("whole", "yolov5n-p2"), ("whole", "yolov5n"), "P2 head against P3 head, whole photographs"),
    Question("c", ("windows", "yolov5n"), ("whole", "yolov5n"), "windows against whole photographs, P3 head"),
    Question("c", ("windows", "yolov5n-p2"), ("whole", "yolov5n-p2"), "windows against whole photographs, P2 head"),
    Question("d", ("variants", "yolov5n-ema-neck"), ("blocks", "yolov5n-ema"), "EMA in the neck against the backbone"),
    Question("e", ("variants", "yolov5n-ema-reference"), ("blocks", "yolov5n-ema"), "EMA as published against exact"),
    Question("f", ("identity", "yolov5n-ema"), ("fresh", "yolov5n-ema"), "EMA with --init identity against fresh"),
    Question("f", ("identity", "yolov5n-cbam"), ("fresh", "yolov5n-cbam"), "CBAM with --init identity against fresh"),
)

GROUPS = ("ade", "bcf")
"""The questions that one panel of the picture shows: those about blocks, and those about everything else."""


def main() -> None:
    args = parse_args()
    if not args.report:
        for name in args.only or TRAININGS:
            train(name, TRAININGS[name], args)
    report(args.folder)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, help="data YAML of BCCD")
    parser.add_argument("--aerial", type=Path, help="data YAML of the aerial photographs")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="(default: runs/evidence)")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, help="only these trainings, in this order")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 10 for blocks, 3 to 5 for the others)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time (default: 2)")
    parser.add_argument("--known", type=Path, metavar="CSV", help="figures of trainings that need not be repeated")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.report and not (args.bccd and args.aerial):
        parser.error("--bccd and --aerial are needed to train")
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {args.seeds}")
    if args.known and not args.known.is_file():
        parser.error(f"--known {args.known}: no such file")
    args.folder = args.folder.resolve()
    return args


# --- trainings ------------------------------------------------------------------------------


def train(name: str, training: Training, args: argparse.Namespace) -> None:
    start = run_of(args.folder, *START).best
    if "{start}" in training.flags and not start.is_file():
        sys.exit(f"{name} starts from {start}, which is missing: train it with --only {START[0]} {name}")
    files = data_of(args)
    place, cfgs = args.folder / "cfgs" / name, []
    place.mkdir(parents=True, exist_ok=True)
    nc = len(yaml.safe_load(files[training.data].read_text())["names"])
    for model, flags in training.cfgs.items():
        cfg = place / f"{model}.yaml"
        if not cfg.is_file():
            ours("cfg", "--size", "n", *flags, "--nc", nc, "-o", cfg)
        cfgs.append(cfg)
    hyp = place / "hyp.yaml"
    hyp.write_text(hyp_for(training))
    seeds = args.seeds or training.seeds
    words = (
        *("compare", "--data", files[training.data], "--cfgs", *cfgs, "--seeds", seeds, "--jobs", args.jobs),
        *("--project", args.folder, "--name", name, "--latency-rounds", 0, "--task", "auto"),
        *("--epochs", training.epochs, "--img", training.imgsz, "--batch", training.batch, "--noval", "--cache"),
        *("--hyp", hyp, "--workers", 0, "--device", "cpu"),
        *(str(flag).format(start=start) for flag in training.flags),
    )
    if args.known:
        (args.folder / name).mkdir(exist_ok=True)
        ours(*words, "--no-train", may_fail=True)  # begins the comparison; without results it ends with an error
        take_over(args.known, args.folder, name)
    ours(*words)
    for run in runs_of(args.folder, name) if training.whole else ():
        if not whole_file(run).is_file() and record_of(run).status == FINISHED:
            scored = whole_file(run).with_suffix(".new")
            what = ("--weights", run.best, "--data", files["aerial"], "--protocol", "yolov5", "--json", scored)
            ours("evaluate", *what, *training.whole, "--project", args.folder / "val", "--no-plots")
            scored.rename(whole_file(run))


def hyp_for(training: Training) -> str:
    """The hyperparameters, as YAML; a quarter of lr0 * epochs / 300 is the highest learning rate reached."""
    hyp = yaml.safe_load((HERE / "hyp.evidence.yaml").read_text())
    return yaml.safe_dump({**hyp, **training.hyp, "lr0": 1200 * training.peak_lr / training.epochs})


def data_of(args: argparse.Namespace) -> dict[str, Path]:
    """The data YAMLs; the windows are cut if they are missing. Their val are the whole photographs, for a short val."""
    cut = args.folder / "windows-320"
    ours("data", "slice", args.aerial.resolve(), "--size", 320, "--overlap", 0.2, "-o", cut)
    aerial = load_dataset(args.aerial.resolve())
    photographs = [str(aerial.place(entry).resolve()) for entry in aerial.entries("val")]
    windows = args.folder / "windows.yaml"
    content = yaml.safe_load(next(cut.glob("*.yaml")).read_text())
    windows.write_text(yaml.safe_dump({**content, "val": photographs}))
    return {"bccd": args.bccd.resolve(), "aerial": args.aerial.resolve(), "windows": windows}


def ours(*words: object, may_fail: bool = False) -> None:
    command = [sys.executable, "-m", "yolov5_ema", *map(str, words)]
    print("$ yolov5-ema", *words[:2], "…", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run(command, env=environment, check=not may_fail)


# --- results --------------------------------------------------------------------------------


def run_of(folder: Path, training: str, model: str, seed: int) -> Run:
    return Run(model, seed, folder / training / model / f"seed{seed}")


def runs_of(folder: Path, training: str) -> Iterator[Run]:
    for model in TRAININGS[training].cfgs:
        for file in sorted((folder / training / model).glob("seed*.json")):
            if file.stem.removeprefix("seed").isdigit():
                yield run_of(folder, training, model, int(file.stem.removeprefix("seed")))


def whole_file(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}-whole.json")


def figures(folder: Path, training: str, model: str) -> dict[int, Mapping[str, float]]:
    """The results of the finished trainings of a model, by seed."""
    found: dict[int, Mapping[str, float]] = {}
    for run in runs_of(folder, training):
        record = record_of(run)
        if run.cfg != model or record.status != FINISHED or record.figures is None:
            continue
        if not TRAININGS[training].whole:
            found[run.seed] = record.figures
        elif whole_file(run).is_file():
            scored = json.loads(whole_file(run).read_text())["yolov5"]
            found[run.seed] = {"map50": scored["mAP50"], "map50_95": scored["mAP50-95"]}
    return found


class Row(NamedTuple):
    question: Question
    metric: str
    candidate: float
    baseline: float
    difference: Difference


def rows_of(folder: Path) -> list[Row]:
    rows = []
    for question in QUESTIONS:
        candidate, baseline = (figures(folder, *which) for which in (question.candidate, question.baseline))
        both = sorted(candidate.keys() & baseline.keys())
        level = bonferroni_confidence(0.95, sum(other.letter == question.letter for other in QUESTIONS))
        for metric in METRICS:
            values = [{seed: found[seed][metric] for seed in both} for found in (candidate, baseline)]
            difference = paired_difference(*values, confidence=level)
            if difference is not None:
                means = [sum(by_seed.values()) / len(both) for by_seed in values]
                rows.append(Row(question, metric, *means, difference))
    return rows


def report(folder: Path) -> None:
    """Print all differences; write them, the figures of every training, and the picture."""
    rows = rows_of(folder)
    if not rows:
        sys.exit(f"{folder} holds no trainings that are finished for both sides of a question")
    here = machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {version}" for name, version in software(locate()).items())
    about = f"{here['device']}, {here['cores']} cores; {versions}"
    print(f"{about}\n")
    print(table(rows), end="\n\n")
    name = f"{datetime.date.today()}-evidence"
    save(rows, about, HERE / "results" / f"{name}.csv")
    save_runs(folder, about, HERE / "results" / f"{name}-runs.csv")
    draw(rows, HERE / "results" / f"{name}.png")
    print(f"\nbenchmarks/results/{name}.csv, -runs.csv and .png written")


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown, with a line for each question."""
    lines = [f"| question | seeds | {' | '.join(METRICS.values())} |", "| --- | --- |" + " --- |" * len(METRICS)]
    for question in dict.fromkeys(row.question for row in rows):
        cells = [shown(row) for row in rows if row.question == question]
        seeds = next(row.difference.n for row in rows if row.question == question)
        lines.append(f"| ({question.letter}) {question.words} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(row: Row) -> str:
    found = row.difference
    interval = "one seed" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
    return f"{row.candidate:.3f} - {row.baseline:.3f} = {found.mean:+.4f} ({interval}): {found.verdict}"


def save(rows: Sequence[Row], about: str, file: Path) -> None:
    with open(file, "w", newline="") as stream:
        stream.write(f"# {about}\n")
        writer = csv.writer(stream)
        names = ("seeds", "candidate", "baseline", "difference", "sd", "low", "high", "confidence", "verdict")
        writer.writerow(("question", "words", "metric", *names))
        for row in rows:
            found = row.difference
            values = (row.candidate, row.baseline, found.mean, found.sd, found.low, found.high, found.confidence)
            shown = ("" if value is None else f"{value:.5g}" for value in values)
            writer.writerow(
                (row.question.letter, row.question.words, METRICS[row.metric], found.n, *shown, found.verdict)
            )


def save_runs(folder: Path, about: str, file: Path) -> None:
    """Write the figures of every finished training, as `take_over` reads them."""
    with open(file, "w", newline="") as stream:
        stream.write(f"# {about}\n")
        writer = csv.DictWriter(stream, (*RECIPE, "model", "seed", *FIGURES, *WHOLE))
        writer.writeheader()
        for name in TRAININGS:
            for run in runs_of(folder, name):
                found = record_of(run).figures
                if found is None or run.seed not in figures(folder, name, run.cfg):
                    continue
                scored = json.loads(whole_file(run).read_text())["yolov5"] if whole_file(run).is_file() else {}
                row = {"model": run.cfg, "seed": run.seed, **recipe(name)}
                row |= {figure: f"{found[figure]:.5g}" for figure in FIGURES}
                writer.writerow(row | {column: f"{scored[key]:.5g}" for column, key in WHOLE.items() if key in scored})


def take_over(file: Path, folder: Path, name: str) -> None:
    """Note trainings that were done elsewhere by the present recipe as finished, unless they are in the folder."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    for row in csv.DictReader(lines):
        run = run_of(folder, name, row["model"], int(row["seed"]))
        if any(row.get(key) != value for key, value in recipe(name).items()) or run.record_file.exists():
            continue
        run.record_file.parent.mkdir(exist_ok=True)
        known = Record(FINISHED, {figure: float(row[figure]) for figure in FIGURES})
        run.record_file.write_text(json.dumps(asdict(known)))
        if TRAININGS[name].whole:
            scored = {key: float(row[column]) for column, key in WHOLE.items()}
            whole_file(run).write_text(json.dumps({"yolov5": scored}))


def recipe(name: str) -> dict[str, str]:
    training = TRAININGS[name]
    hyp = hashlib.sha256(hyp_for(training).encode()).hexdigest()[:12]
    values = (name, training.data, training.epochs, training.imgsz, training.batch, hyp)
    return dict(zip(RECIPE, map(str, values)))


def draw(rows: Sequence[Row], file: Path) -> None:
    """All differences with their intervals: a column for each metric, a panel of its own scale for each group."""
    groups = [[row for row in rows if row.question.letter in letters] for letters in GROUPS]
    groups = [group for group in groups if group]
    heights = [len(group) / len(METRICS) + 1 for group in groups]
    figure = Figure(figsize=(11, 0.6 + 0.34 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), len(METRICS), sharey="row", squeeze=False, height_ratios=heights)
    for group, line in zip(groups, panels):
        for axes, metric in zip(line, METRICS):
            draw_panel(axes, [row for row in group if row.metric == metric])
    for axes, label in zip(panels[0], METRICS.values()):
        axes.set_title(f"{label}: mean difference and its interval", fontsize=10, loc="left")
    figure.savefig(file, dpi=150)


def draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for place, row in enumerate(rows):
        low, high = row.difference.low, row.difference.high
        is_shown = low is not None and high is not None and not low <= 0 <= high
        colour = "#0072B2" if is_shown else "#777777"
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(row.difference.mean, place, "D", color=colour, markersize=5)
    texts = [f"({row.question.letter}) {row.question.words}, {row.difference.n} seeds" for row in rows]
    axes.set_yticks(range(len(rows)), texts, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
