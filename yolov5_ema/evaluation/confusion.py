"""A confusion matrix of detections: which class is detected as which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolov5_ema.evaluation.boxes import overlaps
from yolov5_ema.evaluation.matching import match
from yolov5_ema.evaluation.records import NO_CLASS, Predictions, Truth


class ConfusionMatrix:
    """Counts of (detected class, true class), with a last row and column for the background.

    Detections of any class are assigned to objects of any class, the highest score first, each to the free object with
    the largest overlap. The last row counts objects that were not found, the last column detections without an object.
    Ignored objects and ignored regions are left out, and so are detections that are covered by them at least by half.

    Args:
        names: the names of the classes.
        confidence: detections below it do not count; YOLOv5's own matrix uses 0.25.
        iou: an assigned pair has a larger overlap than this; YOLOv5's own matrix uses 0.45.

    Attributes:
        counts: int64 of shape (classes + 1, classes + 1).
    """

    def __init__(self, names: Sequence[str], confidence: float = 0.25, iou: float = 0.45) -> None:
        self.names = tuple(names)
        self.confidence = confidence
        self.iou = iou
        self.counts = np.zeros((len(self.names) + 1, len(self.names) + 1), np.int64)

    def update(self, truth: Truth, predictions: Predictions) -> None:
        """Add one image."""
        best = predictions.by_score()
        chosen = (best.scores > self.confidence) & (best.classes != NO_CLASS)
        boxes, detected = best.boxes[chosen], best.classes[chosen]
        counted = ~truth.ignored & (truth.classes != NO_CLASS)
        objects = truth.classes[counted]
        shared = overlaps(boxes, truth.boxes[counted])  # (N, M)
        first, second = np.nonzero(shared > self.iou)
        taken = match(first, second, shared[first, second], len(boxes), len(objects))
        hits = taken >= 0
        background = len(self.names)
        np.add.at(self.counts, (detected[hits], objects[taken[hits]]), 1)
        missed = np.setdiff1d(np.arange(len(objects)), taken[hits])
        np.add.at(self.counts, (background, objects[missed]), 1)
        passed_over = np.concatenate([truth.boxes[~counted], truth.regions])
        on_ignored = overlaps(boxes, passed_over, of_first=True).max(axis=1, initial=0.0) >= 0.5
        np.add.at(self.counts, (detected[~hits & ~on_ignored], background), 1)
