"""YOLOv5 without the shim, as it runs where this package is only installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
from packaging.version import parse


def _pkg_resources_stood_in_for() -> None:
    stand_in: Any = types.ModuleType("pkg_resources")
    stand_in.parse_version = parse
    stand_in.require = lambda *names: None
    stand_in.parse_requirements = lambda text: []
    stand_in.Requirement = stand_in.DistributionNotFound = stand_in.VersionConflict = Exception
    sys.modules["pkg_resources"] = stand_in


def reads_checkpoints(clone: str, *files: str) -> None:
    """Print for each file the names of its model, and the sum of the fused model's output for an image."""
    torch.set_num_threads(1)
    sys.path.insert(0, clone)
    _pkg_resources_stood_in_for()
    for file in files:
        checkpoint = torch.load(file, weights_only=False)
        assert checkpoint["epoch"] == -1 and checkpoint["optimizer"] is None and checkpoint["ema"] is None
        model = checkpoint["model"].float().fuse().eval()
        assert type(model).__module__ == "models.yolo" and "yolov5_ema.engine" not in sys.modules
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        print(model.names, model(image)[0].double().abs().sum().item())


def sums_of_ones(clone: str, file: str) -> None:
    """Print the sum of the output of a checkpoint's unchanged model for an image of ones."""
    sys.path.insert(0, clone)
    _pkg_resources_stood_in_for()
    model = torch.load(file, weights_only=False)["model"]
    assert type(model).__module__ == "models.yolo", type(model)
    assert "yolov5_ema.engine" not in sys.modules
    print(float(model.eval()(torch.ones(1, 3, 64, 64))[0].sum()))


def writes_a_checkpoint(packages: str, file: str) -> None:
    """Of an old release, whose package lies in the folder ``packages``."""
    import numpy

    old: Any = numpy
    sys.path.insert(0, packages)
    _pkg_resources_stood_in_for()
    old.int = int
    from yolov5.models import yolo

    torch.manual_seed(0)
    model = yolo.Model(str(Path(yolo.__file__).parent / "yolov5s.yaml"), nc=3).half()
    model.names = ["a", "b", "c"]
    checkpoint = {"epoch": 3, "best_fitness": numpy.array([0.25]), "model": model, "ema": None, "optimizer": None}
    torch.save(checkpoint, file)
