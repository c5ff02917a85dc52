"""COCO's detection protocol, computed by faster-coco-eval if it is installed, otherwise by pycocotools.

Source: https://cocodataset.org/#detection-eval and https://github.com/cocodataset/cocoapi (pycocotools). Its
``summarize`` supports only the limits 1, 10 and 100, and prints -1 or the wrong row for others. Its arrays are read.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.records import NO_CLASS, Predictions, Truth
from yolov5_ema.evaluation.results import Curve, Result

MAX_DETS = (1, 10, 100)
"""Maximum numbers of detections for each image and class; AP is computed with the last."""
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Areas of objects in square pixels, as pycocotools bounds them."""
FINE_SIZES = {"tiny": (0, 16**2), "from 16 to 32": (16**2, 32**2)}
"""'small' split in two, for data sets with tiny objects."""


class CocoProtocol:
    """The 12 figures of COCO detection, as fractions.

    ``AP`` (mean over IoU 0.50 to 0.95), ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``, ``AR1``,
    ``AR10``, ``AR100`` (one for each cut), ``AR_small``, ``AR_medium``, ``AR_large``. NaN where pycocotools says -1:
    there is no object of that size.

    Args:
        names: the names of the classes.
        max_dets: maximum numbers of detections for each image and class, ascending.
        by_size: also compute AP, AP50 and AR of tiny, small, medium and large objects, with limits of 16, 32 and 96
            pixels (square root of the area). COCO's own 'small' is the first two together.

    Raises:
        UserError: ``max_dets`` are not ascending positive numbers.

    Example:
        >>> truth = Truth("a", 100, 100, np.array([[10.0, 10, 20, 20]]), np.array([0]), np.array([False]))
        >>> protocol = CocoProtocol(["car"])
        >>> protocol.update(truth, Predictions(truth.boxes, np.array([0.9]), truth.classes))
        >>> round(protocol.compute().metrics["AP_small"], 6)
        1.0
    """

    name = "coco"

    def __init__(self, names: Sequence[str], max_dets: Sequence[int] = MAX_DETS, by_size: bool = False) -> None:
        cuts = tuple(max_dets)
        if not cuts or list(cuts) != sorted(set(cuts)) or cuts[0] < 1:
            raise UserError(f"max_dets must be ascending numbers of detections, such as 1 10 100, not {list(cuts)}")
        self.names = tuple(names)
        self.max_dets = cuts
        self.sizes = {**SIZES, **FINE_SIZES} if by_size else SIZES
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    def update(self, truth: Truth, predictions: Predictions) -> None:
        """Add one image; equal scores are ordered as the images were added, as pycocotools orders by image id.

        Ignored objects are crowds. An ignored region is a crowd in each class, because classes are evaluated
        separately. Objects of `NO_CLASS` are left out.
        """
        image = len(self._images)
        self._images.append({"id": image, "width": truth.width, "height": truth.height})
        for region in truth.regions:
            for index in range(len(self.names)):
                self._add_object(image, index, region, float(region[2] * region[3]), True)
        areas = truth.boxes[:, 2] * truth.boxes[:, 3] if truth.areas is None else truth.areas
        for box, index, ignored, area in zip(truth.boxes, truth.classes, truth.ignored, areas):
            if index != NO_CLASS:
                self._add_object(image, int(index), box, float(area), bool(ignored))
        for box, score, index in zip(predictions.boxes.tolist(), predictions.scores.tolist(), predictions.classes):
            if index != NO_CLASS:
                self._detections.append({"image_id": image, "category_id": int(index), "bbox": box, "score": score})

    def compute(self) -> Result:
        """The figures over all images that were added.

        Raises:
            UserError: there is no object to be found.
        """
        if all(entry["iscrowd"] for entry in self._objects):
            raise UserError("the ground truth holds no object that counts: there is nothing to evaluate")
        done = self._evaluated()
        # (thresholds, recalls, classes, sizes, cuts) and (thresholds, classes, sizes, cuts); -1: there is no object
        precision = np.where(done["precision"] < 0, np.nan, done["precision"])
        recall = np.where(done["recall"] < 0, np.nan, done["recall"])
        per_class = {
            name: self._figures(precision[:, :, [index]], recall[:, [index]]) for index, name in enumerate(self.names)
        }
        return Result(
            protocol=self.name,
            unit="fraction",
            metrics=self._figures(precision, recall),
            per_class=per_class,
            curves=self._curves(precision),
            settings={"max_dets": list(self.max_dets)},
            by_size=self._by_size(precision, recall),
        )

    def _add_object(self, image: int, index: int, box: np.ndarray, area: float, crowd: bool) -> None:
        self._objects.append(
            {
                "id": len(self._objects) + 1,  # pycocotools treats a match with id 0 as no match
                "image_id": image,
                "category_id": index,
                "bbox": box.tolist(),
                "area": area,
                "iscrowd": int(crowd),
            }
        )

    def _evaluated(self) -> dict[str, Any]:
        coco, evaluator = _library()
        classes = [{"id": index, "name": name} for index, name in enumerate(self.names)]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            truth, found = coco(), coco()
            truth.dataset = {"images": self._images, "annotations": self._objects, "categories": classes}
            truth.createIndex()
            if self._detections:
                found = truth.loadRes(self._detections)
            evaluation = evaluator(truth, found, "bbox")
            evaluation.params.maxDets = list(self.max_dets)
            evaluation.params.areaRng = [list(bounds) for bounds in self.sizes.values()]
            evaluation.params.areaRngLbl = list(self.sizes)
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval

    def _figures(self, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
        sizes = [(list(self.sizes).index(size), size) for size in SIZES if size != "all"]
        return {
            "AP": _mean(precision[:, :, :, 0, -1]),
            "AP50": _mean(precision[0, :, :, 0, -1]),
            "AP75": _mean(precision[5, :, :, 0, -1]),
            **{f"AP_{size}": _mean(precision[:, :, :, at, -1]) for at, size in sizes},
            **{f"AR{cut}": _mean(recall[:, :, 0, at]) for at, cut in enumerate(self.max_dets)},
            **{f"AR_{size}": _mean(recall[:, :, at, -1]) for at, size in sizes},
        }

    def _by_size(self, precision: np.ndarray, recall: np.ndarray) -> dict[str, dict[str, float]]:
        """The figures by size; empty unless ``by_size`` was given."""
        shown = {"tiny": "tiny", "small": "from 16 to 32", "medium": "medium", "large": "large"}
        if not set(shown.values()) <= set(self.sizes):
            return {}
        places = {name: list(self.sizes).index(size) for name, size in shown.items()}
        return {
            name: {
                "AP": _mean(precision[:, :, :, at, -1]),
                "AP50": _mean(precision[0, :, :, at, -1]),
                f"AR{self.max_dets[-1]}": _mean(recall[:, :, at, -1]),
            }
            for name, at in places.items()
        }

    def _curves(self, precision: np.ndarray) -> dict[str, Curve]:
        recalls = np.linspace(0.0, 1.0, precision.shape[1])
        at_half = precision[0, :, :, 0, -1]  # (recalls, classes)
        return {
            name: Curve(recalls, at_half[:, index])
            for index, name in enumerate(self.names)
            if not np.isnan(at_half[0, index])
        }


def _library() -> tuple[Any, Any]:
    """The classes ``COCO`` and ``COCOeval`` of faster-coco-eval, which gives the same figures, or of pycocotools."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:  # a platform without wheels
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    return COCO, functools.partial(COCOeval_faster, print_function=lambda *_: None)


def _mean(values: np.ndarray) -> float:
    """The mean of the values that exist; NaN if there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
