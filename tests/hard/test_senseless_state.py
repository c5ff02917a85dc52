"""Checkpoints of allowed classes filled with senseless state, with the commands that use them.

Each command ends with a message and exit code 2, or does its work; without a traceback, a crash or a hang.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hostile_yaml import SMALL
from senseless import in_a_fork, lay_out, mutated
from torch import nn
from under_watch import command, own_place

from yolov5_ema.checkpoints import loading as checkpoints

USES: dict[str, tuple[object, ...]] = {
    "detect": (
        "--weights",
        "a.pt",
        "--source",
        "images/val",
        "--imgsz",
        64,
        "--save-crop",
        "--conf-thres",
        0.001,
    ),
    "val": ("--weights", "a.pt", "--data", "good.yaml", "--imgsz", 64, "--batch-size", 2, "--workers", 0),
    "export": ("--weights", "a.pt", "--include", "torchscript", "--imgsz", 64),
    "predict": ("--weights", "a.pt", "--source", "images/val", "--imgsz", 64),
    "train": (
        *("--weights", "a.pt", "--data", "good.yaml", "--epochs", 1, "--imgsz", 64, "--batch-size", 2),
        *("--workers", 0, "--noval", "--noautoanchor", "--device", "cpu"),
    ),
    "visualize": ("--weights", "a.pt", "--source", "images/val", "--imgsz", 64, "--max-images", 1),
    "evaluate": ("--weights", "a.pt", "--data", "good.yaml", "--imgsz", 64),
}
_MADE = {
    "a.pt",
    "a.torchscript.pt",
    "a.torchscript",
    "runs",
    "images",
    "labels",
    "good.yaml",
    "predictions.parquet",
}
_CFG = {**SMALL, "backbone": [*SMALL["backbone"], [-1, 1, "EMA", [4]], [-1, 1, "CBAM", []]]}

# --- running -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(engine) -> nn.Module:
    from yolov5.models.yolo import Model

    torch.manual_seed(0)
    return Model(copy.deepcopy(_CFG)).eval()


def outcome(name: str, content: dict[str, Any], engine: Any) -> int:
    """The exit code of a command on a checkpoint; an AssertionError unless it succeeds or prints a message."""
    with own_place() as folder:
        lay_out(folder)
        try:
            checkpoints.save_checkpoint(content, folder / "a.pt", engine=engine)
        except Exception:  # a state that cannot be written is in nobody's file
            return 0
        code, _ = command(name, *USES[name], folder=folder, watch=False)
        assert {path.name for path in folder.iterdir()} <= _MADE
        return code


def check(seeds: range, engine: Any, model: nn.Module) -> dict[int, int]:
    """Run one command on each mutation, in a separate process that may be killed; returns counts of exit codes."""
    codes: dict[int, int] = {}
    failures = []
    names = list(USES)
    for seed in seeds:
        said, content = mutated(seed, model)
        code, words = in_a_fork(lambda: outcome(names[seed % len(names)], content, engine))  # noqa: B023
        codes[code] = codes.get(code, 0) + 1
        if code not in (0, 2):
            failures.append(f"{seed} {names[seed % len(names)]}: {said}: {code} {words[-1500:]}")
    assert not failures, f"{len(failures)} of {len(seeds)}:\n" + "\n".join(failures[:40])
    return codes


def test_a_good_one_is_used_by_every_command(engine, model):
    """The files below are refused because of what was changed."""
    content = {
        "epoch": -1,
        "model": model,
        "ema": None,
        "optimizer": None,
        "best_fitness": None,
        "updates": None,
    }
    for name in ("detect", "visualize", "export"):
        code, words = in_a_fork(lambda: outcome(name, content, engine))  # noqa: B023
        assert code == 0, f"{name}: {words}"


def test_senseless_state(engine, model):
    codes = check(range(1000, 1014), engine, model)
    assert codes[2] >= 5, codes


@pytest.mark.slow
def test_much_senseless_state(engine, model):
    codes = check(range(500), engine, model)
    assert codes[2] >= 200 and codes[0] >= 20, codes
    print(codes)
