"""The protocol of YOLOv5's ``val``: the P, R, mAP50 and mAP50-95 that it prints.

Source: https://github.com/ultralytics/yolov5 (val.py, utils/metrics.py), reimplemented from its behaviour. It differs
from COCO in four ways. Pairs are matched by their overlap, not in the order of scores. An object goes to the detection
with the highest score that prefers it, and the other detections do not get their second choice. There are no crowds and
no ignored regions. AP is the area under a line through 101 recalls, which starts with a precision of 1.

The protocol changed with YOLOv5 v6.2. Before, pairs were matched at IoU 0.5 only, and P and R were taken where the mean
F1 is highest. Since then, pairs are matched at each threshold, and the mean F1 is smoothed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.records import NO_CLASS, Predictions, Truth
from yolov5_ema.evaluation.results import Curve, Result

THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
"""IoU 0.50, 0.55 … 0.95."""
MAX_DET = 300
"""The maximum number of detections of an image that ``val`` keeps."""
RELEASES = ("6.0", "6.2")
"""The releases in which the rules changed."""
_CONFIDENCES = np.linspace(0, 1, 1000)
_RECALLS = np.linspace(0, 1, 101)


def rules_of(release: tuple[int, int]) -> str:
    """The entry of `RELEASES` with the rules of a release.

    Example:
        >>> rules_of((6, 1)), rules_of((7, 0))
        ('6.0', '6.2')
    """
    return "6.0" if release < (6, 2) else "6.2"


class Yolov5Protocol:
    """``P``, ``R``, ``mAP50`` and ``mAP50-95`` as YOLOv5's ``val`` prints them, as fractions.

    For each class there are ``P``, ``R``, ``AP50``, ``AP`` and the number of ``labels``. Classes without labels are
    ignored.

    Args:
        names: the names of the classes.
        release: the rules to use: "6.0" (and 6.1) or "6.2" (and all later releases).
        max_det: the maximum number of detections of an image that count.

    Raises:
        UserError: the release is unknown.

    Example:
        >>> truth = Truth("a", 100, 100, np.array([[10.0, 10, 20, 20]]), np.array([0]), np.array([False]))
        >>> protocol = Yolov5Protocol(["car"])
        >>> protocol.update(truth, Predictions(truth.boxes, np.array([0.9]), truth.classes))
        >>> round(protocol.compute().metrics["mAP50"], 3)
        0.995
    """

    name = "yolov5"

    def __init__(self, names: Sequence[str], release: str = "6.2", max_det: int = MAX_DET) -> None:
        if release not in RELEASES:
            raise UserError(f"release must be one of {', '.join(RELEASES)}, not {release!r}")
        self.names = tuple(names)
        self.release = release
        self.max_det = max_det
        self._hits: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._classes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    @property
    def settings(self) -> dict[str, object]:
        """The settings of the evaluation, for the result."""
        return {"release": self.release, "max_det": self.max_det}

    def update(self, truth: Truth, predictions: Predictions) -> None:
        """Add one image. Ignored objects and those of `NO_CLASS` are left out, as they are in YOLO labels."""
        best = predictions.best(self.max_det)
        evaluated = best.classes != NO_CLASS
        boxes, classes = _xyxy(best.boxes[evaluated]), best.classes[evaluated]
        counted = ~truth.ignored & (truth.classes != NO_CLASS)
        labels = truth.classes[counted]
        shared = _overlaps(_xyxy(truth.boxes[counted]), boxes)
        shared = np.where(labels[:, None] == classes[None], shared, np.float32(0))
        self._hits.append(self._found(shared))
        self._scores.append(best.scores[evaluated].astype(np.float32))
        self._classes.append(classes)
        self._labels.append(labels)

    def compute(self) -> Result:
        """The figures over all images that were added.

        Raises:
            UserError: there is no label.
        """
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels])
        if not len(labels):
            raise UserError("the ground truth holds no object: there is nothing to evaluate")
        present, counts = np.unique(labels, return_counts=True)
        hits, precision, recall, ap, curves = self._by_class(present, counts)
        f1 = (2 * precision * recall / (precision + recall + 1e-16)).mean(axis=0)
        best = int((f1 if self.release == "6.0" else _smooth(f1)).argmax())
        if not hits.any():  # YOLOv5 then prints zeros
            precision, recall, ap = np.zeros_like(precision), np.zeros_like(recall), np.zeros_like(ap)
        per_class: dict[str, dict[str, Any]] = {
            self.names[index]: {
                "P": float(precision[at, best]),
                "R": float(recall[at, best]),
                "AP50": float(ap[at, 0]),
                "AP": float(ap[at].mean()),
                "labels": int(counts[at]),
            }
            for at, index in enumerate(present)
        }
        return Result(
            protocol=self.name,
            unit="fraction",
            metrics={
                "P": float(precision[:, best].mean()),
                "R": float(recall[:, best].mean()),
                "mAP50": float(ap[:, 0].mean()),
                "mAP50-95": float(ap.mean()),
            },
            per_class=per_class,
            curves=curves,
            settings=self.settings,
        )

    def _by_class(
        self, present: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Curve]]:
        """The hits, P and R by class and confidence, AP by class and threshold, and the curve of each class."""
        scores = np.concatenate(self._scores)
        order = np.argsort(-scores)
        hits, scores, classes = np.concatenate(self._hits)[order], scores[order], np.concatenate(self._classes)[order]
        ap = np.zeros((len(present), len(THRESHOLDS)))
        precision, recall = np.zeros((2, len(present), len(_CONFIDENCES)))
        curves = {}
        for at, (index, count) in enumerate(zip(present, counts)):
            of_class = classes == index
            curves[self.names[index]] = envelope(np.zeros(1), np.zeros(1))
            if not of_class.any():
                continue
            found = hits[of_class].cumsum(axis=0)  # (detections, thresholds)
            all_recall = found / (count + 1e-16)
            all_precision = found / np.arange(1, len(found) + 1)[:, None]
            by_confidence = -_CONFIDENCES, -scores[of_class]
            recall[at] = np.interp(*by_confidence, all_recall[:, 0], left=0)
            precision[at] = np.interp(*by_confidence, all_precision[:, 0], left=1)
            lines = [self._curve(all_recall[:, t], all_precision[:, t]) for t in range(len(THRESHOLDS))]
            ap[at] = [_area(line) for line in lines]
            curves[self.names[index]] = lines[0]
        return hits, precision, recall, ap, curves

    def _curve(self, recall: np.ndarray, precision: np.ndarray) -> Curve:
        """The curve whose area is the AP, from the recall and precision after each detection."""
        return envelope(recall, precision)

    def _found(self, shared: np.ndarray) -> np.ndarray:
        """Which detections find an object: (labels, detections) overlaps to bool of (detections, thresholds)."""
        found = np.zeros((shared.shape[1], len(THRESHOLDS)), bool)
        if self.release == "6.0":
            objects, detections = _pairs(shared, THRESHOLDS[0])
            found[detections] = shared[objects, detections][:, None] >= THRESHOLDS
            return found
        for at, threshold in enumerate(THRESHOLDS):
            found[_pairs(shared, threshold)[1], at] = True
        return found


def _xyxy(boxes: np.ndarray) -> np.ndarray:
    """Left, top, width, height to left, top, right, bottom, in the float32 that YOLOv5 computes with."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union in float32: (N, 4) and (M, 4), left, top, right, bottom, to (N, M)."""
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(size, 0, None).prod(axis=2)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(axis=1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _pairs(shared: np.ndarray, threshold: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The matched objects and detections: each detection's best object, then each object's first detection."""
    objects, detections = np.nonzero(shared >= threshold)
    order = shared[objects, detections].argsort()[::-1]
    objects, detections = objects[order], detections[order]
    first = np.unique(detections, return_index=True)[1]
    objects, detections = objects[first], detections[first]
    first = np.unique(objects, return_index=True)[1]
    return objects[first], detections[first]


def envelope(recall: np.ndarray, precision: np.ndarray) -> Curve:
    """The curve from (0, 1) through these points to (1, 0), made monotone."""
    padded = np.concatenate([[1.0], precision, [0.0]])[::-1]
    return Curve(np.concatenate([[0.0], recall, [1.0]]), np.maximum.accumulate(padded)[::-1])


def _area(curve: Curve) -> float:
    """By the trapezoidal rule through 101 recalls."""
    line = np.interp(_RECALLS, curve.recall, curve.precision)
    return float(np.sum(np.diff(_RECALLS) * (line[1:] + line[:-1]) / 2))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a tenth of the values, the ends repeated."""
    half = round(len(values) * 0.2) // 2 // 2
    padded = np.concatenate([np.full(half, values[0]), values, np.full(half, values[-1])])
    return np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")
