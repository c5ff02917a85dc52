"""The protocol of the ``val`` of the package `ultralytics`: the P, R, mAP50 and mAP50-95 that it prints.

Source: https://github.com/ultralytics/ultralytics (engine/validator.py, utils/metrics.py), reimplemented from its
behaviour. Up to 8.3 it is the protocol of YOLOv5 v6.2. Later releases match detections in the order of their
confidence, each to the object that it overlaps most among those that are still free, and the precision is 0 beyond the
highest recall that was reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolov5_ema.errors import UserError
from yolov5_ema.evaluation.results import Curve
from yolov5_ema.evaluation.yolov5 import MAX_DET, THRESHOLDS, Yolov5Protocol, envelope

RULES = ("8.3", "8.4")
"""Releases with different rules: "8.3" and earlier, and "8.4"."""


class UltralyticsProtocol(Yolov5Protocol):
    """``P``, ``R``, ``mAP50`` and ``mAP50-95`` as ultralytics' ``val`` computes them, as fractions.

    Its ``val`` compares boxes before it cuts them off at the border of the image.

    Args:
        names: the names of the classes.
        rules: the rules to use, one of `RULES`.
        max_det: the maximum number of detections of an image that count.

    Raises:
        UserError: the rules are unknown.
    """

    name = "ultralytics"

    def __init__(self, names: Sequence[str], rules: str = "8.4", max_det: int = MAX_DET) -> None:
        if rules not in RULES:
            raise UserError(f"rules must be {' or '.join(RULES)}, not {rules!r}")
        super().__init__(names, "6.2", max_det)
        self.rules = rules

    @property
    def settings(self) -> dict[str, object]:
        return {"release": self.rules, "max_det": self.max_det}

    def _found(self, shared: np.ndarray) -> np.ndarray:
        if self.rules == "8.3":
            return super()._found(shared)
        found = np.zeros((shared.shape[1], len(THRESHOLDS)), bool)
        taken = np.zeros((shared.shape[0], len(THRESHOLDS)), bool)
        reaching = (shared >= THRESHOLDS[0]).any(axis=0)
        for detection in np.flatnonzero(reaching):
            free = np.where(taken, 0, shared[:, detection, None])  # (labels, thresholds)
            best = free.argmax(axis=0)
            columns = np.arange(len(THRESHOLDS))
            found[detection] = free[best, columns] >= THRESHOLDS
            taken[best, columns] |= found[detection]
        return found

    def _curve(self, recall: np.ndarray, precision: np.ndarray) -> Curve:
        if self.rules == "8.3":
            return super()._curve(recall, precision)
        return envelope(np.append(recall, recall[-1]), np.append(precision, 0.0))
