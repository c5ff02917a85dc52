"""Evaluation protocols of YOLOv5, ultralytics, COCO and VisDrone, which all return the same type of result."""

from __future__ import annotations

from yolov5_ema.evaluation.coco import CocoProtocol
from yolov5_ema.evaluation.confusion import ConfusionMatrix
from yolov5_ema.evaluation.records import Predictions, Truth
from yolov5_ema.evaluation.results import Result
from yolov5_ema.evaluation.ultralytics import UltralyticsProtocol
from yolov5_ema.evaluation.visdrone import VisDroneProtocol
from yolov5_ema.evaluation.yolov5 import Yolov5Protocol

__all__ = [
    "CocoProtocol",
    "ConfusionMatrix",
    "Predictions",
    "Result",
    "Truth",
    "UltralyticsProtocol",
    "VisDroneProtocol",
    "Yolov5Protocol",
]
