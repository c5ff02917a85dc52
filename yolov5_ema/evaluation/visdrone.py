"""VisDrone-DET's protocol: the figures that the benchmark's own toolkit prints.

Source: https://github.com/VisDrone/VisDrone2018-DET-toolkit, v1.0.4 (evalDET.m and what it calls), reimplemented from
its behaviour. The differences from COCO:

- Objects and detections that are at least half inside ignored regions are dropped first, by rounded boxes.
- The first 1, 10, 100, 500 detections of an image count, in the order of the file and over all classes together.
- AP is the whole area under the monotone precision envelope, not its mean at 101 recalls.
- A detection of an object of score 0 does not count as wrong, but the object stays in the denominator of the recall.
- Classes are weighted by the number of images that contain them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.boxes import overlaps
from yolov5_ema.evaluation.matching import match
from yolov5_ema.evaluation.records import NO_CLASS, Predictions, Truth
from yolov5_ema.evaluation.results import Curve, Result

THRESHOLDS = np.arange(10, 20) / 20.0
"""IoU 0.50, 0.55 … 0.95."""
CUTS = (1, 10, 100, 500)
"""Maximum numbers of detections for each image; AP is computed with the last."""
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class _Image:
    """The values of one image that are evaluated; pairs have the same class and an overlap of at least a half."""

    classes: np.ndarray  # (N,) of the detections kept, best first
    scores: np.ndarray  # (N,)
    file_rank: np.ndarray  # (N,) place in the file after the drop
    pair_detections: np.ndarray  # (P,)
    pair_objects: np.ndarray  # (P,) among the ordinary objects
    pair_overlaps: np.ndarray  # (P,)
    ignored_overlaps: np.ndarray  # (N,) the highest with an object of score 0
    ordinary_classes: np.ndarray  # (M,)
    object_classes: np.ndarray  # (M + score 0,)


class VisDroneProtocol:
    """AP, AP50, AP75, AR1, AR10, AR100 and AR500 of VisDrone-DET, in percent.

    Args:
        names: of the classes.

    Example:
        >>> truth = Truth("a", 100, 100, np.array([[10.0, 10, 20, 20]]), np.array([0]), np.array([False]))
        >>> protocol = VisDroneProtocol(["car"])
        >>> protocol.update(truth, Predictions(truth.boxes, np.array([0.9]), truth.classes))
        >>> protocol.compute().metrics["AP"]
        100.0
    """

    name = "visdrone"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._images: list[_Image] = []

    def update(self, truth: Truth, predictions: Predictions) -> None:
        """Add one image; equal scores are ordered as the images were added, as the toolkit orders files by name.

        Args:
            truth: with score-0 objects as `ignored`, 'others' as `NO_CLASS`, and the ignored regions.
            predictions: in the order of their file.
        """
        truth_kept = ~inside_regions(truth.boxes, truth)
        kept = ~inside_regions(predictions.boxes, truth)
        boxes, scores, classes = (array[kept] for array in (predictions.boxes, predictions.scores, predictions.classes))
        order = np.argsort(-scores, kind="stable")
        boxes, scores, classes = boxes[order], scores[order], classes[order]
        counted = truth_kept & (truth.classes != NO_CLASS)
        ordinary, ignored = counted & ~truth.ignored, counted & truth.ignored
        shared = _of_one_class(overlaps(boxes, truth.boxes[ordinary]), classes, truth.classes[ordinary])
        detections, objects = np.nonzero(shared >= THRESHOLDS[0])
        on_ignored = overlaps(boxes, truth.boxes[ignored], of_first=True)
        on_ignored = _of_one_class(on_ignored, classes, truth.classes[ignored])
        self._images.append(
            _Image(
                classes=classes,
                scores=scores,
                file_rank=order,
                pair_detections=detections,
                pair_objects=objects,
                pair_overlaps=shared[detections, objects],
                ignored_overlaps=on_ignored.max(axis=1, initial=0.0),
                ordinary_classes=truth.classes[ordinary],
                object_classes=truth.classes[counted],
            )
        )

    def compute(self) -> Result:
        """The figures over all images that were added.

        Raises:
            UserError: there is no object to be found.
        """
        images_with = np.zeros(len(self.names), np.int64)
        objects = np.zeros(len(self.names), np.int64)
        for image in self._images:
            counts = np.bincount(image.object_classes, minlength=len(self.names))
            objects += counts
            images_with += counts > 0
        if not objects.sum():
            raise UserError("the ground truth holds no object outside ignored regions: there is nothing to evaluate")
        precision, recall, curves = self._per_class(objects)
        per_class = {
            name: _class_figures(precision[index], recall[index], int(images_with[index]), index)
            for index, name in enumerate(self.names)
        }
        curves = {name: curve for name, curve in curves.items() if images_with[self.names.index(name)]}
        return Result(
            protocol=self.name,
            unit="percent",
            metrics=_mean(per_class, "images"),
            per_class=per_class,
            curves=curves,
            settings={"max_dets": list(CUTS), "mean": "classes weighted by the images that hold them"},
            mean_over_classes=_mean(per_class, "classes"),
        )

    def _per_class(self, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Curve]]:
        """AP of shape (classes, thresholds), AR of shape (classes, cuts, thresholds), in percent, and the curves."""
        every = _joined(self._images)
        order = np.argsort(-every.scores, kind="stable")
        of_class = [order[every.classes[order] == index] for index in range(len(self.names))]
        precision = np.zeros((len(self.names), len(THRESHOLDS)))
        recall = np.zeros((len(self.names), len(CUTS), len(THRESHOLDS)))
        curves = {}
        for at, threshold in enumerate(THRESHOLDS):
            for cut, count in enumerate(CUTS):
                hits = _hits(every, threshold, count)
                found = np.bincount(every.classes[hits], minlength=len(self.names))
                recall[:, cut, at] = 100 * found / np.maximum(1, objects)
            passed_over = (every.ignored_overlaps >= threshold) & ~hits
            counted = (every.file_rank < CUTS[-1]) & ~passed_over  # hits are those of the last cut
            for index, name in enumerate(self.names):
                chosen = of_class[index][counted[of_class[index]]]
                curve = _envelope(hits[chosen], int(objects[index]))
                precision[index, at] = 100 * float(np.sum(np.diff(curve.recall) * curve.precision[1:]))
                if at == 0:
                    curves[name] = curve
        return precision, recall, curves


def _joined(images: Sequence[_Image]) -> _Image:
    """Join all images into one, and renumber its detections and objects."""
    detections = np.cumsum([0, *(len(image.classes) for image in images)])
    objects = np.cumsum([0, *(len(image.ordinary_classes) for image in images)])

    def join(name: str, shift: np.ndarray | None = None) -> np.ndarray:
        parts = [getattr(image, name) for image in images]
        return np.concatenate(parts if shift is None else [part + by for part, by in zip(parts, shift)])

    shifts = {"pair_detections": detections, "pair_objects": objects}
    return _Image(**{field.name: join(field.name, shifts.get(field.name)) for field in fields(_Image)})


def _hits(every: _Image, threshold: float, cut: int) -> np.ndarray:
    """Whether each detection finds an object if only the first ``cut`` detections of each file count."""
    used = (every.pair_overlaps >= threshold) & (every.file_rank[every.pair_detections] < cut)
    detections, objects = every.pair_detections[used], every.pair_objects[used]
    return match(detections, objects, every.pair_overlaps[used], len(every.classes), len(every.ordinary_classes)) >= 0


def inside_regions(boxes: np.ndarray, truth: Truth) -> np.ndarray:
    """The boxes that the toolkit drops: those with at least half of their area in ignored regions.

    Regions are drawn into a mask of the image's pixels, including both ends. Boxes are rounded first (halves away from
    zero) and moved to start inside the image. Their area is not clipped to the image.

    Args:
        boxes: (N, 4), left, top, width, height.
        truth: gives the regions and the image's size.

    Returns:
        bool of shape (N,).
    """
    if not len(truth.regions) or not len(boxes):
        return np.zeros(len(boxes), bool)
    width, height = truth.width, truth.height
    mask = np.zeros((height, width), np.uint8)
    for left, top, w, h in np.maximum(1, truth.regions):  # counted from 1, as the toolkit counts pixels
        mask[_first(top) : int(min(height, top + h)), _first(left) : int(min(width, left + w))] = 1
    total = cv2.integral(mask)  # (height + 1, width + 1): pixels above and to the left
    rounded = np.clip(np.sign(boxes) * np.floor(np.abs(boxes) + 0.5), 1, 2**31).astype(np.int64)
    x, y = np.minimum(rounded[:, 0], width), np.minimum(rounded[:, 1], height)
    right, bottom = np.minimum(width, x + rounded[:, 2]), np.minimum(height, y + rounded[:, 3])
    inside = total[y, x] + total[bottom, right] - total[y, right] - total[bottom, x]
    return inside / (rounded[:, 2] * rounded[:, 3]) >= IGNORED_SHARE


def _first(start: float) -> int:
    return int(np.ceil(start)) - 1


def _of_one_class(shared: np.ndarray, classes: np.ndarray, object_classes: np.ndarray) -> np.ndarray:
    return np.where(classes[:, None] == object_classes[None], shared, 0.0)


def _envelope(hits: np.ndarray, objects: int) -> Curve:
    """Precision over recall of detections in descending order of score, made monotone, from (0, 0) to (1, 0)."""
    found = np.cumsum(hits)
    recall = np.concatenate([[0.0], found / max(1, objects), [1.0]])
    precision = np.concatenate([[0.0], found / np.maximum(1, np.arange(1, len(hits) + 1)), [0.0]])
    return Curve(recall, np.maximum.accumulate(precision[::-1])[::-1], is_stepped=True)


def _class_figures(precision: np.ndarray, recall: np.ndarray, images: int, index: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"AP": precision.mean(), "AP50": precision[0], "AP75": precision[5]}
    figures.update({f"AR{cut}": recall[at].mean() for at, cut in enumerate(CUTS)})
    return {
        **{name: float(value) for name, value in figures.items()},
        "category": index + 1,
        "images_with_gt": images,
        "in_mean": images > 0,
        "AP_by_iou": precision.tolist(),
        "AR_by_iou": {str(cut): recall[at].tolist() for at, cut in enumerate(CUTS)},
    }


def _mean(per_class: dict[str, dict[str, Any]], weighted_by: str) -> dict[str, float]:
    """The mean over the classes that occur in an image."""
    held = [figures for figures in per_class.values() if figures["in_mean"]]
    weights = [figures["images_with_gt"] if weighted_by == "images" else 1 for figures in held]
    names = ["AP", "AP50", "AP75", *(f"AR{cut}" for cut in CUTS)]
    return {name: float(np.average([figures[name] for figures in held], weights=weights)) for name in names}
