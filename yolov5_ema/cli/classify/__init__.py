"""``yolov5-ema classify``: image classifiers with attention blocks. There is one file per command."""

from __future__ import annotations

from yolov5_ema.cli.command import Group

COMMAND = Group(
    "classify",
    "train, evaluate and use image classifiers with attention blocks (CIFAR-100, ImageNet)",
    __name__,
    ("train", "val", "predict"),
)
