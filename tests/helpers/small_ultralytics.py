"""Small models of the package ultralytics for each task, and checkpoints of them as its training leaves them."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import torch

from yolov5_ema.checkpoints.ultralytics_models import built
from yolov5_ema.upstream.ultralytics import located

HEADS: dict[str, list[Any]] = {
    "detect": [[3, 5], 1, "Detect", ["nc"]],
    "segment": [[3, 5], 1, "Segment", ["nc", 8, 32]],
    "pose": [[3, 5], 1, "Pose", ["nc", [4, 3]]],
    "obb": [[3, 5], 1, "OBB", ["nc", 1]],
    "classify": [-1, 1, "Classify", ["nc"]],
}


def small_cfg(task: str = "detect", block: str | None = "EMA", options: tuple[Any, ...] = (4,)) -> dict[str, Any]:
    """The content of a model YAML with levels at strides 4 and 8, and a block before the second one."""
    rows: list[Any] = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "C3k2", [128, False]]]
    rows += [[-1, 1, "C2f", [128]], [-1, 1, block or "nn.Identity", list(options) if block else []]]
    rows += [[-1, 1, "Conv", [128, 3, 2]]]
    cfg = {"nc": 3, "kpt_shape": [4, 3]} if task == "pose" else {"nc": 3}
    return {**cfg, "scales": {"n": [0.5, 0.25, 128]}, "backbone": rows, "head": [copy.deepcopy(HEADS[task])]}


def small_model(task: str = "detect", seed: int = 0, cfg: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model with random weights and the names disc, box, cross; the adapter must be installed."""
    content = {**(cfg or small_cfg(task)), "scale": "n", **changes}
    model = built(content, None, located(), "small")
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.05)
    model.names = dict(enumerate(("disc", "box", "cross")))
    if task == "pose":
        model.kpt_shape = list(content["kpt_shape"])
    model.args = {"task": task, "imgsz": 64, "data": "x.yaml"}
    return model.eval()


def save(model: Any, file: Path) -> Path:
    """Write a stripped checkpoint."""
    defaults = importlib.import_module("ultralytics.utils").DEFAULT_CFG_DICT
    checkpoint = {
        **{"epoch": -1, "best_fitness": None, "model": copy.deepcopy(model).half(), "ema": None, "updates": None},
        **{"optimizer": None, "train_args": {**defaults, "task": model.task}, "train_metrics": {"fitness": 0.5}},
        **{"date": "2026-11-28", "version": "8.4.190", "license": "x", "docs": "x"},
    }
    torch.save(checkpoint, file)
    return file


def output_of(model: Any, side: int = 64) -> torch.Tensor:
    """What a model predicts for one random image."""
    found = (
        copy.deepcopy(model).float().eval()(torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)))
    )
    while isinstance(found, (tuple, list)):
        found = found[0]
    return found.detach()
