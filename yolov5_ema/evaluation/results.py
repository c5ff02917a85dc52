"""The result that every protocol returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Precision over recall of one class, at IoU 0.5.

    Attributes:
        recall: ascending, in 0 to 1; shape (K,).
        precision: as the protocol integrates it (the monotone envelope), in 0 to 1; shape (K,).
        is_stepped: whether a point's precision applies to all recalls since the point before; otherwise the points
            are joined by straight lines.
    """

    recall: np.ndarray
    precision: np.ndarray
    is_stepped: bool = False

    def at(self, recalls: np.ndarray) -> np.ndarray:
        """Precision at these recalls, 0 beyond the last point."""
        if not self.is_stepped:
            return np.interp(recalls, self.recall, self.precision, right=0.0)
        padded = np.append(self.precision, 0.0)
        return padded[np.searchsorted(self.recall, recalls)]


@dataclass(frozen=True)
class Result:
    """The figures of one protocol.

    Attributes:
        protocol: its name.
        unit: ``percent`` or ``fraction``, as the protocol's own source prints them.
        metrics: the figures over all classes; NaN if the data does not define one (no object of that size).
        per_class: the same figures for each class, by its name, with further values of the protocol.
        curves: a curve for each class that has objects.
        settings: the settings of the evaluation.
        mean_over_classes: `metrics` as the plain mean over classes, if the protocol weights them.
        by_size: the figures of ``tiny``, ``small``, ``medium`` and ``large`` objects, if requested.
    """

    protocol: str
    unit: str
    metrics: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean_over_classes: Mapping[str, float] = field(default_factory=dict)
    by_size: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The metrics, and the other attributes that are not empty under their names, for JSON; None for NaN."""
        content: dict[str, Any] = {**self.metrics, "unit": self.unit, "per_class": self.per_class}
        for name in ("settings", "mean_over_classes", "by_size"):
            if getattr(self, name):
                content[name] = getattr(self, name)
        return _plain(content)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
