"""``yolov5-ema data``: turn a downloaded data set into one that YOLOv5 trains on. There is one file per command."""

from __future__ import annotations

from yolov5_ema.cli.command import Group

COMMAND = Group(
    "data",
    "convert VisDrone and COCO, slice images, print statistics of a data set",
    __name__,
    ("visdrone", "coco", "stats", "slice"),
)
