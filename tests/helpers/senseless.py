"""Checkpoints of allowed classes filled with senseless state, and a process in which they may do any harm."""

from __future__ import annotations

import copy
import math
import os
import random
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from hostile_yaml import as_text
from torch import nn

VALUES: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, True, 0, -1, 1, 7, 3.5, 2**31, 2**62, math.nan, math.inf, "", "x")),
    *(lambda value=value: copy.copy(value) for value in ([], {}, (), [1, 2], (0, 0), (2**20, 2**20), {"a": 1}, ["a"])),
    lambda: {0: PurePosixPath("/x")},
    lambda: "/" * 9,
    lambda: ["../../x"] * 3,
    lambda: torch.zeros(0),
    lambda: torch.tensor([math.nan, 8.0]),
    lambda: torch.zeros(2, dtype=torch.int64),
    lambda: nn.Identity(),
    lambda: nn.Conv2d(1, 2, 3),
    lambda: {0: nn.Identity()},
    lambda: np.float64(3),
    lambda: np.zeros(3),
]


def mutated(seed: int, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """A checkpoint of a model with one or two places of its state changed, and a text that says what was changed."""
    rng = random.Random(seed)
    model = copy.deepcopy(model)
    checkpoint: dict[str, Any] = {
        **{"epoch": 3, "best_fitness": np.array([0.5]), "model": model, "ema": None, "updates": None},
        **{"optimizer": None, "opt": {"data": "x.yaml"}, "date": "today"},
    }
    layers = list(model.named_modules())
    said = [_change(rng, checkpoint, layers) for _ in range(rng.choice((1, 1, 2)))]
    return "; ".join(said), checkpoint


def _change(rng: random.Random, checkpoint: dict[str, Any], layers: list[tuple[str, nn.Module]]) -> str:
    value = rng.choice(VALUES)()
    if rng.random() < 0.12:
        key = rng.choice([*checkpoint, "ema", "optimizer", "hyp"])
        checkpoint[key] = value
        return f"{key} = {str(value)[:40]}"
    name, layer = rng.choice(_interesting(rng, layers))
    part = rng.choice(["attribute"] * 6 + ["_parameters", "_buffers", "_modules"])
    table = vars(layer) if part == "attribute" else vars(layer).get(part, {})
    keys = sorted(key for key in table if isinstance(key, str)) if isinstance(table, dict) else []
    if part == "attribute":
        keys += ["forward", "training", "names", "module", "stride"]
    if not keys:
        return "nothing"
    key = rng.choice(keys)
    if rng.random() < 0.2 and key in table:
        del table[key]
        return f"{name}.{key} gone"
    if part == "_parameters":
        value = rng.choice(_tensors())
        value = nn.Parameter(value, requires_grad=False) if rng.random() < 0.9 else value
    elif part == "_buffers" and rng.random() < 0.8:
        value = rng.choice(_tensors())
    table[key] = value
    return f"{name}.{key} = {str(value)[:40]!r}"


def _tensors() -> list[torch.Tensor]:
    shapes: list[tuple[int, ...]] = [(), (1,), (2, 3), (8, 8, 1, 1), (4, 4, 3, 3), (0,), (3, 3, 2)]
    return [torch.zeros(shape) for shape in shapes] + [
        torch.zeros(8).expand(4, 8),
        torch.full((8,), math.nan),
    ]


def _interesting(rng: random.Random, layers: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The model, its head and a few other modules, repeated according to how much they matter."""
    head = [pair for pair in layers if type(pair[1]).__name__ == "Detect"]
    blocks = [pair for pair in layers if type(pair[1]).__module__.startswith("yolov5_ema")]
    return [*layers[:1] * 4, *head * 3, *rng.sample(layers, 4), *blocks[:2]]


def lay_out(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for name in ("a", "b"):
            pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
            cv2.imwrite(str(folder / "images" / split / f"{name}.jpg"), pixels)
            (folder / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "nc": 3,
        "names": ["a", "b", "c"],
    }
    (folder / "good.yaml").write_bytes(as_text(data))


def in_a_fork(function: Callable[[], int], seconds: int = 90) -> tuple[int, str]:
    """The result of a function in a child process; 1 and the reason if it fails, -signal if it is killed."""
    import resource
    import signal
    import traceback

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code, words = 1, ""
        try:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, 24 * 2**30))
            signal.alarm(seconds)
            code = function()
        except BaseException:
            words = traceback.format_exc()
        os.write(writing, words.encode()[-6000:])
        os._exit(code if code in (0, 1, 2) else 1)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        words = stream.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), words
