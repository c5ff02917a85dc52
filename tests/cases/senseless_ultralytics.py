"""A command on a checkpoint of ultralytics that may be filled with senseless state."""

from __future__ import annotations

import copy
import resource
import sys
from typing import Any

import torch
from senseless import lay_out, mutated
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
MEMORY = 24 * 2**30
_SMALL = {
    "nc": 3,
    "scales": {"n": [0.5, 0.5, 128]},
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 1, "SPPF", [128, 5]]],
    "head": [[-1, 1, "EMA", [4]], [-1, 1, "C3k2", [128, False]], [[4], 1, "Detect", ["nc"]]],
}


def small() -> Any:
    """A small detector with random weights; the adapter must be installed."""
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    built: Any = tasks.DetectionModel({**copy.deepcopy(_SMALL), "scale": "n"}, verbose=False).eval()
    built.names, built.task, built.args = {0: "a", 1: "b", 2: "c"}, "detect", {"task": "detect", "imgsz": 64}
    return built


def prepare() -> None:
    """Load what each use needs. Nothing is computed, because threads do not survive in a copy of the process."""
    torch.set_num_threads(1)
    yolov5_ema.install("ultralytics")


def use(name: str, seed: int) -> None:
    """Exit with the code of a command on a checkpoint; with a traceback unless it succeeds or prints a message.

    Args:
        name: the command.
        seed: what is changed in the checkpoint; -1 for nothing.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    content: dict[str, Any] = {"epoch": -1, "model": small(), "ema": None, "optimizer": None, "updates": None}
    if seed >= 0:
        said, content = mutated(seed, content["model"])
        print(said)
    with own_place() as folder:
        lay_out(folder)
        try:
            torch.save({**content, "train_args": {"task": "detect", "imgsz": 64}}, folder / "a.pt")
        except Exception:  # a state that cannot be written is in nobody's file
            return
        code = command(name, *USES[name], folder=folder, watch=False)[0]
    sys.exit(code)
