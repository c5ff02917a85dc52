"""What is evaluated: one image's ground truth and one image's detections, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError

NO_CLASS = -1
"""Class of a box that belongs to none of those evaluated, such as VisDrone's 'others'."""


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4))


@dataclass(frozen=True)
class Truth:
    """Ground truth of one image.

    Attributes:
        image: its key, unique in an evaluation: its path relative to the split's folder, or a name where no more is
            known.
        width: in pixels.
        height: in pixels.
        boxes: float64 of shape (M, 4): left, top, width, height in pixels.
        classes: int64 of shape (M,), counted from 0; `NO_CLASS` for none of those evaluated.
        ignored: bool of shape (M,): objects that are no miss if not found (COCO's crowds, VisDrone's score 0).
        regions: float64 of shape (R, 4): places in which nothing is evaluated, as boxes.
        areas: float64 of shape (M,) in square pixels, where they are not those of the boxes (COCO's are those
            of the segmentations).
    """

    image: str
    width: int
    height: int
    boxes: np.ndarray = field(default_factory=_no_boxes)
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    regions: np.ndarray = field(default_factory=_no_boxes)
    areas: np.ndarray | None = None


def clipped(truth: Truth) -> Truth:
    """The same with objects and regions cut off at the image's border, and without those that have no area left."""
    boxes, regions = _clip(truth.boxes, truth), _clip(truth.regions, truth)
    kept = (boxes[:, 2:] > 0).all(axis=1)
    return replace(
        truth,
        boxes=boxes[kept],
        classes=truth.classes[kept],
        ignored=truth.ignored[kept],
        regions=regions[(regions[:, 2:] > 0).all(axis=1)],
        areas=None if truth.areas is None else truth.areas[kept],
    )


def _clip(boxes: np.ndarray, truth: Truth) -> np.ndarray:
    size = (truth.width, truth.height)
    low = np.clip(boxes[:, :2], 0, size)
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, size)
    return np.concatenate([low, high - low], axis=1)


@dataclass(frozen=True)
class Predictions:
    """Detections of one image, in the order of their file.

    Attributes:
        boxes: (N, 4): left, top, width, height in pixels.
        scores: (N,): confidences.
        classes: int64 of shape (N,), counted from 0; `NO_CLASS` for none of those evaluated.
    """

    boxes: np.ndarray = field(default_factory=_no_boxes)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, found: Detections) -> Predictions:
        """What a detector found, in double precision."""
        corners = found.xyxy.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return cls(boxes, found.confidence.astype(np.float64), found.class_id)

    def by_score(self) -> Predictions:
        """The same, best first; equal scores stay in order."""
        order = np.argsort(-self.scores, kind="stable")
        return Predictions(self.boxes[order], self.scores[order], self.classes[order])

    def best(self, count: int) -> Predictions:
        """At most ``count`` of them, the best, in descending order of score."""
        first = self.by_score()
        return Predictions(first.boxes[:count], first.scores[:count], first.classes[:count])


def check_predictions(found: Predictions, image: str, width: int, height: int, where: str, nc: int) -> None:
    """Refuse detections that no detector makes.

    Args:
        found: the detections.
        image: their image.
        width: of the image, pixels.
        height: of the image, pixels.
        where: the file that they are from, for the message.
        nc: number of classes.

    Raises:
        UserError: names the first detection with a score or a coordinate that is no number, with a class that
            there is not, or with a box that lies outside the image; rows are counted from 1.
    """
    boxes, scores, classes = found.boxes, found.scores, found.classes
    if not len(scores):
        return
    left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    finite = np.isfinite(boxes).all(axis=1)
    for wrong, problem in (
        (~np.isfinite(scores), "its score is not a number"),
        (~finite, "its box is not made of numbers"),
        ((classes < NO_CLASS) | (classes >= nc), f"its class is none of 0 to {nc - 1}"),
        ((boxes[:, 2:] < 0).any(axis=1), "its box has a negative width or height"),
        (
            (right < 0) | (bottom < 0) | (left > width) | (top > height),
            f"its box lies outside the image of {width} x {height} pixels",
        ),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            values = ", ".join(f"{value:g}" for value in (*boxes[row], scores[row], classes[row]))
            raise UserError(f"{where}: image {image}, detection {row + 1} ({values}): {problem}")
