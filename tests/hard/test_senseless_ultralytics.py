"""Checkpoints of ultralytics filled with senseless state, with the commands that use them.

Each command ends with a message and exit code 2, or does its work; without a traceback, a crash or a hang.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from offline_ultralytics import offline
from senseless import in_a_fork, lay_out, mutated
from torch import nn
from under_watch import command, own_place

import yolov5_ema

USES: dict[str, tuple[object, ...]] = {
    "detect": ("model=a.pt", "source=images/val", "imgsz=64", "device=cpu", "conf=0.001"),
    "val": ("model=a.pt", "data=good.yaml", "imgsz=64", "batch=2", "workers=0", "device=cpu", "plots=False"),
    "export": ("model=a.pt", "format=torchscript", "imgsz=64", "device=cpu"),
    "train": (
        *("model=a.pt", "data=good.yaml", "epochs=1", "imgsz=64", "batch=2", "workers=0", "device=cpu"),
        *("plots=False", "amp=False", "val=False"),
    ),
    "convert": ("a.pt",),
    "transfer": ("a.pt", "--cfg", "yolo11n-ema.yaml", "-o", "out.pt", "--nc", "3"),
}
_SMALL = {
    "nc": 3,
    "scales": {"n": [0.5, 0.5, 128]},
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 1, "SPPF", [128, 5]]],
    "head": [[-1, 1, "EMA", [4]], [-1, 1, "C3k2", [128, False]], [[4], 1, "Detect", ["nc"]]],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yolov5_ema.install("ultralytics")
        from ultralytics.nn import tasks

        torch.manual_seed(0)
        built = tasks.DetectionModel({**copy.deepcopy(_SMALL), "scale": "n"}, verbose=False).eval()
        built.names, built.task, built.args = {0: "a", 1: "b", 2: "c"}, "detect", {"task": "detect", "imgsz": 64}
        yield built


def outcome(name: str, content: dict[str, Any]) -> int:
    """The exit code of a command on a checkpoint; an AssertionError unless it succeeds or prints a message."""
    with own_place() as folder:
        lay_out(folder)
        content = {**content, "train_args": {"task": "detect", "imgsz": 64}}
        try:
            torch.save(content, folder / "a.pt")
        except Exception:  # a state that cannot be written is in nobody's file
            return 0
        return command(name, *USES[name], folder=folder, watch=False)[0]


def check(seeds: range, model: nn.Module) -> dict[int, int]:
    """Run one command on each mutation, in a separate process that may be killed; returns counts of exit codes."""
    codes: dict[int, int] = {}
    failures = []
    names = list(USES)
    for seed in seeds:
        said, content = mutated(seed, model)
        code, words = in_a_fork(lambda: outcome(names[seed % len(names)], content))  # noqa: B023
        codes[code] = codes.get(code, 0) + 1
        if code not in (0, 2):
            failures.append(f"{seed} {names[seed % len(names)]}: {said}: {code} {words[-1500:]}")
    assert not failures, f"{len(failures)} of {len(seeds)}:\n" + "\n".join(failures[:40])
    return codes


# in the slow tier: a training in a copy of a process with the threads of other tests' libraries can hang
@pytest.mark.slow
def test_a_good_one_is_used_by_every_command(model):
    """The files below are refused because of what was changed."""
    content = {"epoch": -1, "model": model, "ema": None, "optimizer": None, "best_fitness": None, "updates": None}
    for name in USES:
        code, words = in_a_fork(lambda: outcome(name, content))  # noqa: B023
        assert code == 0, f"{name}: {words}"


@pytest.mark.slow
def test_senseless_state(model):
    codes = check(range(3000, 3012), model)
    assert codes[2] >= 4, codes


@pytest.mark.slow
def test_much_senseless_state(model):
    codes = check(range(300), model)
    assert codes[2] >= 100 and codes[0] >= 20, codes
    print(codes)


def test_numbers_that_would_hang_or_fill_the_memory(model):
    from yolov5_ema.checkpoints.ultralytics_files import load
    from yolov5_ema.errors import CheckpointError

    with own_place() as folder:
        for change, words in (
            (lambda m: setattr(m.model[2], "n", 10**9), r"model\.2 \(SPPF\): n cannot be"),
            (lambda m: setattr(m.model[-1], "reg_max", 10**9), "reg_max"),
            (lambda m: setattr(m.model[-1], "nc", 10**9), "nc cannot be"),
            (lambda m: setattr(m.model[-1], "max_det", -1), "whole numbers"),
            (lambda m: setattr(m.model[-1], "stride", torch.tensor([1e9])), "strides of the head"),
            (lambda m: setattr(m, "stride", torch.tensor([float("nan")])), "strides of the model"),
            (lambda m: setattr(m, "names", {0: "a"}), "class 1 of 3 has no name"),
            (lambda m: setattr(m, "task", "fly"), "is no task"),
            (lambda m: m.yaml.update(scales={"n": [1, 2]}), "three numbers"),
            (lambda m: vars(m.model[0]).update(forward=3), "its forward is replaced"),
            (lambda m: m.model[0].conv.register_forward_hook(len), "hook|holds what no"),
        ):
            twin = copy.deepcopy(model)
            change(twin)
            torch.save({"model": twin}, folder / "a.pt")
            with pytest.raises(CheckpointError, match=words):
                load(folder / "a.pt")
