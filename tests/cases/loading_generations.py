"""Checkpoints of several releases."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
import yaml

from yolov5_ema.engine import activation
from yolov5_ema.upstream.locate import engine_at


def write_checkpoints(*places: str) -> None:
    """In one process.

    Args:
        places: by turns the root of a YOLOv5 and the file to write. Beside the model it holds an image and what the
            model says to it.
    """
    for root, file in zip(places[::2], places[1::2]):
        engine = engine_at(Path(root))
        activation.activate(engine)
        logging.disable(logging.INFO)
        yolo = engine.module("models.yolo")
        cfg = yaml.safe_load((Path(root) / "models/yolov5s.yaml").read_text())
        torch.manual_seed(0)
        model = yolo.Model({**cfg, "nc": 3, "width_multiple": 0.25}).eval()
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            output = model(image)[0]
        torch.save({"model": model, "ema": None, "epoch": -1, "image": image, "output": output}, file)
        activation.deactivate()
        _forget_yolov5()


def _forget_yolov5() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in ("yolov5", "models", "utils"):
            del sys.modules[name]
