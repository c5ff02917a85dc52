"""The ground truth and the detections of one image, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from yolov5_ema.data.detections import Detections
from yolov5_ema.errors import UserError

NO_CLASS = -1
"""The class of a box that is not in an evaluated class, such as VisDrone's 'others'."""


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4))


@dataclass(frozen=True)
class Truth:
    """Ground truth of one image.

    Attributes:
        image: its key, unique in an evaluation: its path relative to the split's folder, or its name if the path is
            unknown.
        width: the width in pixels.
        height: the height in pixels.
        boxes: float64 of shape (M, 4): left, top, width, height in pixels.
        classes: int64 of shape (M,), counted from 0; `NO_CLASS` if the class is not evaluated.
        ignored: bool of shape (M,): objects that do not count as missed (COCO's crowds, VisDrone's score 0).
        regions: float64 of shape (R, 4): boxes in which nothing is evaluated.
        areas: float64 of shape (M,) in square pixels, if they differ from the areas of the boxes (COCO uses the areas
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
    """A copy with objects and regions cut off at the image's border, without those that have no area left."""
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
        classes: int64 of shape (N,), counted from 0; `NO_CLASS` if the class is not evaluated.
    """

    boxes: np.ndarray = field(default_factory=_no_boxes)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, found: Detections) -> Predictions:
        """Convert the detections of a detector to double precision."""
        corners = found.xyxy.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return cls(boxes, found.confidence.astype(np.float64), found.class_id)

    def by_score(self) -> Predictions:
        """A copy in descending order of score; equal scores keep their order."""
        order = np.argsort(-self.scores, kind="stable")
        return Predictions(self.boxes[order], self.scores[order], self.classes[order])

    def best(self, count: int) -> Predictions:
        """The ``count`` best detections at most, in descending order of score."""
        first = self.by_score()
        return Predictions(first.boxes[:count], first.scores[:count], first.classes[:count])


def check_predictions(found: Predictions, truth: Truth, where: str, nc: int) -> None:
    """Refuse invalid detections.

    Args:
        found: the detections.
        truth: gives the key and the size of their image.
        where: the file with the detections, for the message.
        nc: the number of classes.

    Raises:
        UserError: a score or a coordinate is not a number, a class is unknown, or a box is outside the image. The
            message gives the first such detection; rows are counted from 1.
    """
    boxes, scores, classes = found.boxes, found.scores, found.classes
    if not len(scores):
        return
    left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    finite = np.isfinite(boxes).all(axis=1)
    for wrong, problem in (
        (~np.isfinite(scores), "its score is not a number"),
        (~finite, "its box is not made of numbers"),
        ((classes < NO_CLASS) | (classes >= nc), f"its class is not in 0 to {nc - 1}"),
        ((boxes[:, 2:] < 0).any(axis=1), "its box has a negative width or height"),
        (
            (right < 0) | (bottom < 0) | (left > truth.width) | (top > truth.height),
            f"its box lies outside the image of {truth.width} x {truth.height} pixels",
        ),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            values = ", ".join(f"{value:g}" for value in (*boxes[row], scores[row], classes[row]))
            raise UserError(f"{where}: image {truth.image}, detection {row + 1} ({values}): {problem}")
