"""``yolov5-ema data``: from a data set as it was downloaded to one that YOLOv5 trains on; one file for each command."""

from __future__ import annotations

from yolov5_ema.cli.command import Group

COMMAND = Group(
    "data",
    "convert VisDrone and COCO, slice images, look at a data set's sizes and classes",
    {
        "visdrone": "yolov5_ema.cli.data.visdrone",
        "coco": "yolov5_ema.cli.data.coco",
        "stats": "yolov5_ema.cli.data.stats",
        "slice": "yolov5_ema.cli.data.slice",
    },
)
