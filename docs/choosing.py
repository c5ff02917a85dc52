"""The page "Choosing a block", built from what ``yolov5-ema blocks --at … --json`` printed.

``python docs/choosing.py`` writes ``docs/choosing.md`` from the newest runs in ``benchmarks/results/``.
``python docs/choosing.py --measure`` first makes new runs, which takes some minutes; nothing else should be running.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wrap

from yolov5_ema.comparing.block_support import reasons, table_of

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks/results"
PAGE = REPOSITORY / "docs/choosing.md"
MODELS = ("yolov5s", "yolo11n")
IMGSZ = 640
Run = Mapping[str, Any]

_INTRODUCTION = """\
# Choosing a block

<!-- python docs/choosing.py writes this page from benchmarks/results/*-blocks-*.json -->

What each [attention block](blocks.md) costs in two detectors, and which programs run a detector with it after an
export. Nothing here says which block detects better: [train and compare](compare.md), on your own data. `yolov5-ema
blocks --at my.yaml` makes these tables for any model, on your machine; with `--all`, also for timm's layers.

How to read them:

- The blocks are behind the last two stages of the backbone, with their default options.
- Parameters and GFLOPs are those of the blocks; a multiply-add counts as two. The row `none` is the whole model.
- "Alone" is the time of the blocks by themselves, "detector" that of the whole model with them, for one image, in
  float32: the median, and the quartiles in brackets. The models take turns.
- The ratio is the median, over rounds, of the model's time divided by that of the model without a block. Differences
  between blocks that are smaller than the quartiles allow are noise.
- "Kept" is what the blocks keep in memory for the backward pass of one image, with their input.
"""


def page(runs: Mapping[str, Run], files: Mapping[str, str]) -> str:
    """The text of the page.

    Args:
        runs: what ``blocks --at … --json`` printed, by model.
        files: the name of the file of each run, without its ending.
    """
    parts = [_INTRODUCTION, *(_costs(model, run, files[model]) for model, run in runs.items())]
    return wrap.wrapped("\n".join([*parts, _support(next(iter(runs.values())))]))


def _costs(model: str, run: Run, file: str) -> str:
    here, side = run["machine"], run["imgsz"]
    versions = ", ".join(f"{name} {version}" for name, version in run["software"].items())
    rows = [_cost_row(cost) for cost in run["blocks"] if cost["detector_ms"] is not None]
    impossible = [f"- `{cost['block']}` is not possible: {cost['reason']}" for cost in run["blocks"] if cost["reason"]]
    heads = ["block", "parameters", "GFLOPs", "alone, ms", "detector, ms", "ratio", "kept, MiB", "paper"]
    picture = f"![Time that each block adds to {model}, against its parameters](../benchmarks/results/{file}.png)"
    return "\n".join(
        [
            f"## In {model}\n",
            f"Measured on {file[:10]} on {here['device']}, {here['cores']} cores, {here['threads']} threads, load "
            f"{here['load']} at the end of the run, {here['system']}; {versions}. {side} x {side} pixels, "
            f"{run['rounds']} rounds.\n",
            f"{picture}\n",
            *_markdown([heads, *rows]),
            "",
            *impossible,
        ]
    )


def _cost_row(cost: Mapping[str, Any]) -> list[str]:
    low, high = cost["detector_quartiles_ms"]
    return [
        f"`{cost['block']}`",
        f"{cost['parameters']:,}",
        f"{cost['gflops']:.3f}",
        "" if cost["alone_ms"] is None else f"{cost['alone_ms']:.2f}",
        f"{cost['detector_ms']:.1f} ({low:.1f} to {high:.1f})",
        f"{cost['ratio']:.3f}",
        "" if cost["kept_mib"] is None else f"{cost['kept_mib']:.2f}",
        cost["paper"],
    ]


def _support(run: Run) -> str:
    supports = {cost["block"]: cost["support"] for cost in run["blocks"] if cost["support"]}
    numbers = [
        outcome
        for support in supports.values()
        for found in support.values()
        for outcome in found.values()
        if not isinstance(outcome, str)
    ]
    engines = list(dict.fromkeys(engine for support in supports.values() for engine in support))
    heads, *rows = table_of(supports)
    why = reasons(supports)
    return "\n".join(
        [
            "## What runs an exported detector\n",
            f"Each block was put into a model of {', '.join(engines[:-1])} and {engines[-1]}, trained for one step and "
            f'exported; then the file was run and its output compared with torch\'s ({run["support_tested"]}). "yes" '
            "means that the output was right with each of these engines; the largest difference among these outputs "
            f'was {max(numbers):.1e}. A block that cannot be built, trained or exported has "no" in every column.\n',
            *_markdown([heads, *([f"`{block}`", *cells] for block, *cells in rows)]),
            "",
            *(["What does not work, and why:\n"] if why else ["No block was refused, and no output was wrong.\n"]),
            *(f"- {line}" for line in why),
            *([""] if why else []),
            "`python benchmarks/block_support.py` tests this again. OpenVINO computes in float32 here; its own choice "
            "on some processors is half precision, which differs more.",
        ]
    )


def _markdown(table: list[list[str]]) -> list[str]:
    heads, *rows = (f"| {' | '.join(row)} |" for row in table)
    return [heads, f"| {' | '.join(['---'] * len(table[0]))} |", *rows]


def newest(model: str) -> Path:
    """The newest run of a model, a JSON file; its name begins with the date."""
    return max(RESULTS.glob(f"*-blocks-{model}.json"))


def built() -> str:
    """The page of the newest runs."""
    files = {model: newest(model) for model in MODELS}
    runs = {model: json.loads(file.read_text(encoding="utf-8")) for model, file in files.items()}
    return page(runs, {model: file.stem for model, file in files.items()})


def measure(rounds: int) -> None:
    """Run the command for each model, and replace the earlier runs."""
    for model in MODELS:
        stem = RESULTS / f"{datetime.date.today()}-blocks-{model}"
        options = ("--imgsz", IMGSZ, "--rounds", rounds, "--device", "cpu", "--picture", f"{stem}.png", "--json")
        command = [sys.executable, "-m", "yolov5_ema", "blocks", "--at", f"{model}.yaml", *map(str, options)]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
        for earlier in RESULTS.glob(f"*-blocks-{model}.*"):
            if earlier.stem != stem.name:
                earlier.unlink()
        stem.with_name(f"{stem.name}.json").write_text(done.stdout, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="first run `blocks --at` for each model, on this CPU")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each run (default: 20)")
    args = parser.parse_args()
    if args.measure:
        measure(args.rounds)
    PAGE.write_text(built(), encoding="utf-8")


if __name__ == "__main__":
    main()
