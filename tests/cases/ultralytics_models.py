"""Checkpoints of the package ultralytics that detect something although nothing trained them."""

from __future__ import annotations

import math
from typing import Any

import torch


def write_detector(cfg: str, file: str) -> None:
    """Write a detector whose boxes have the size of the tiny set's shapes, with classes and confidences by chance.

    Args:
        cfg: the YAML of a model with three classes and a ``Detect`` head.
        file: the checkpoint to write.
    """
    import yolov5_ema

    yolov5_ema.install("ultralytics")
    from ultralytics import YOLO

    torch.manual_seed(0)
    yolo: Any = YOLO(cfg)
    spread_detections(yolo.model)
    yolo.model.names = {0: "disc", 1: "box", 2: "cross"}
    yolo.model.args = {"imgsz": 64, "task": "detect"}
    yolo.save(file)


@torch.no_grad()
def spread_detections(model: Any) -> None:
    """Let the detections of a model with random weights differ.

    Features become larger. A ``Detect`` head gets classes and confidences by chance, and boxes of about 18 pixels.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.fill_(0.2)
    head = model.model[-1]
    ends = [(getattr(head, f"{prefix}cv2", ()), getattr(head, f"{prefix}cv3", ())) for prefix in ("", "one2one_")]
    for boxes_of_levels, classes_of_levels in ends:
        for level, (boxes, classes) in enumerate(zip(boxes_of_levels, classes_of_levels)):
            distance = 9 / float(head.stride[level])  # in cells, from the centre of a box to its sides
            bins = torch.arange(head.reg_max) - distance
            boxes[-1].weight.mul_(0.3)
            boxes[-1].bias.copy_((-2 * bins.abs()).repeat(4) if head.reg_max > 1 else torch.full((4,), distance))
            classes[-1].weight.normal_(0, 0.6)
            classes[-1].bias.fill_(-math.log(9))
