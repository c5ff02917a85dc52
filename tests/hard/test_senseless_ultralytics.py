"""Checkpoints of ultralytics filled with senseless state, with the commands that use them.

Each command ends with a message and exit code 2, or does its work; without a traceback, a crash or a hang.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from cases import senseless_ultralytics as cases
from fresh_process import fresh_environment, name_of
from offline_ultralytics import environment, offline
from under_watch import own_place
from warm_python import run_warm

import yolov5_ema

LONGEST_S = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("ultralytics")
    return tmp_path_factory.mktemp("senseless")


def used(name: str, seed: int, folder: Path) -> tuple[int, str]:
    """The exit code of a command in a process of its own, and what it printed; -14 if it took too long."""
    options = {"cwd": folder, "env": fresh_environment(environment(folder)), "prepared": [name_of(cases.prepare)]}
    done = run_warm("fresh_process", name_of(cases.use), name, seed, longest_s=LONGEST_S, **options)
    return done.returncode, done.stdout + done.stderr


def check(seeds: range, folder: Path) -> dict[int, int]:
    """Run one command on each mutation; returns counts of exit codes."""
    codes: dict[int, int] = {}
    failures = []
    names = list(cases.USES)
    for seed in seeds:
        name = names[seed % len(names)]
        code, words = used(name, seed, folder)
        codes[code] = codes.get(code, 0) + 1
        if code not in (0, 2):
            failures.append(f"{seed} {name}: {code} {words[:100]} … {words[-1500:]}")
    assert not failures, f"{len(failures)} of {len(seeds)}:\n" + "\n".join(failures[:40])
    return codes


SLOW = ("train", "transfer")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in cases.USES]
)
def test_a_good_one_is_used_by_every_command(name, folder):
    """The files below are refused because of what was changed."""
    code, words = used(name, -1, folder)
    assert code == 0, words


@pytest.mark.slow
def test_senseless_state(folder):
    codes = check(range(3000, 3012), folder)
    assert codes[2] >= 4, codes


@pytest.mark.slow
def test_much_senseless_state(folder):
    codes = check(range(300), folder)
    assert codes[2] >= 100 and codes[0] >= 20, codes
    print(codes)


def test_numbers_that_would_hang_or_fill_the_memory(tmp_path):
    from yolov5_ema.checkpoints.ultralytics_files import load
    from yolov5_ema.errors import CheckpointError

    with offline(tmp_path), yolov5_ema.installed("ultralytics"), own_place() as folder:
        model = cases.small()
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
