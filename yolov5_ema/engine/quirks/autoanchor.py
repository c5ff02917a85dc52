"""AutoAnchor on a data set with fewer distinct box sizes than anchors, on which v6.0 fails."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from yolov5_ema.engine.quirks.base import Quirk, SourceModule
from yolov5_ema.upstream.source_code import Code

_LOGGER = logging.getLogger(__name__)

_FUNCTIONS = ("check_anchors", "kmean_anchors")


def _quantile_anchors(dataset: Any, n: int, img_size: int) -> np.ndarray:
    """Pick n widths and heights, (n, 2) in pixels, evenly spaced over the boxes sorted by area."""
    shapes = img_size * dataset.shapes / dataset.shapes.max(1, keepdims=True)
    sizes = np.concatenate([rows[:, 3:5] * shape for shape, rows in zip(shapes, dataset.labels)])  # (m, 2)
    in_order = sizes[np.argsort(sizes.prod(1))]
    places = np.linspace(0, len(in_order) - 1, n).round().astype(int)
    return in_order[places].clip(min=2.0)


def _with_fallback(
    kmean_anchors: Callable[..., Any], dataset: Any, n: int = 9, img_size: int = 640, *args: Any, **kwargs: Any
) -> Any:
    try:
        return kmean_anchors(dataset, n, img_size, *args, **kwargs)
    except Exception as error:
        if isinstance(dataset, str):
            raise
        _LOGGER.info("autoanchor: k-means failed (%s); using %d box sizes from the labels instead", error, n)
        return _quantile_anchors(dataset, n, img_size)


def _needed(module: SourceModule) -> str | None:
    check_anchors, kmean_anchors = (module.code.part(name) for name in _FUNCTIONS)
    if check_anchors is None or kmean_anchors is None:
        return None
    # v6.2 and later try k-means itself
    if _guards(check_anchors, "kmean_anchors") and not _guards(kmean_anchors, "kmeans"):
        return "check_anchors continues with anchors of the wrong shape after k-means failed"
    return None


def _guards(function: Code, name: str) -> bool:
    """Whether a function calls another one within ``try``."""
    return any(Code(line).calls(name) for tried in function.all(ast.Try) for line in tried.body)


AUTOANCHOR_FEW_BOXES = Quirk(
    name="autoanchor-few-boxes",
    symptom="RuntimeError: The size of tensor a must match the size of tensor b, after autoanchor: ERROR",
    versions="6.0, 6.1; PyPI 6.0.7",
    needed=_needed,
    settled=lambda module: module.code.defines(*_FUNCTIONS),
    apply=lambda module, patches: patches.wrap(module.module, "kmean_anchors", _with_fallback),
)
