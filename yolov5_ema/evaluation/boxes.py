"""Overlaps of boxes given as left, top, width, height."""

from __future__ import annotations

import numpy as np


def overlaps(a: np.ndarray, b: np.ndarray, of_first: bool = False) -> np.ndarray:
    """Intersection over union, or over the area of the first box alone: (N, 4) and (M, 4) to (N, M).

    The overlap of a box without area is 0.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])  # (N, M, 2)
    shared = np.clip(high - low, 0, None).prod(axis=2)  # (N, M), square pixels
    area = a[:, 2] * a[:, 3]
    whole = np.broadcast_to(area[:, None], shared.shape)
    if not of_first:
        whole = whole + b[:, 2] * b[:, 3] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)
