"""A detector with weights set by hand, so that the right maps are known."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import PLUGINS

import yolov5_ema
from yolov5_ema.blocks import unregister_block
from yolov5_ema.checkpoints.loading import save_checkpoint
from yolov5_ema.upstream.locate import Engine

CELL = 8


def red_picture(width: int = 128, height: int = 128) -> np.ndarray:
    """(height, width, 3) in BGR: a red square from (72, 24) to (104, 56), and a blue one from (16, 88) to (48, 120)."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[24:56, 72:104, 2] = 255
    picture[88:120, 16:48, 0] = 255
    return picture


@contextmanager
def written_red_detector(folder: Path) -> Iterator[Path]:
    """A checkpoint of a detector of red: a cell's channel 0 is how red it is, channel 1 how blue, both at least 0.

    Its rows: 0 Conv of stride 8, 1 Spotlight, 2 Detect with one anchor of 32 x 32 pixels and the classes red, blue. A
    cell is an object if its channel 0 is high, and then it is of class red. The plugin ``spotlight.py``, which
    registers the block, is written next to the checkpoint.
    """
    shutil.copy(PLUGINS / "spotlight.py", folder)
    sys.path.insert(0, str(folder))
    importlib.import_module("spotlight")
    try:
        with yolov5_ema.installed() as engine:
            checkpoint = {"model": _model(engine), "ema": None, "epoch": -1}
            save_checkpoint(checkpoint, folder / "red.pt", engine=engine)
        yield folder / "red.pt"
    finally:
        sys.path.remove(str(folder))
        unregister_block("Spotlight")
        del sys.modules["spotlight"]


def _model(engine: Engine) -> Any:
    cfg = {
        "nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": [[32, 32]],
        "backbone": [[-1, 1, "Conv", [8, CELL, CELL, 0]], [-1, 1, "Spotlight", []]],
        "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
    }  # fmt: skip
    model = engine.module("models.yolo").Model(cfg).eval()
    model.names = ["red", "blue"]
    conv, _, detect = model.model
    conv.act = torch.nn.ReLU(inplace=True)
    conv.bn.reset_running_stats()  # the identity
    conv.bn.eps = 0.0
    with torch.no_grad():
        conv.conv.weight.zero_()
        conv.conv.weight[0, 0] = 1 / CELL**2  # the mean of red
        conv.conv.weight[1, 2] = 1 / CELL**2
        head = detect.m[0]
        head.weight.zero_()
        head.bias.zero_()
        head.weight[4:6, 0], head.bias[4:6] = 20, -10  # an object, and class red, where it is red
        head.bias[6] = -10
    return model
