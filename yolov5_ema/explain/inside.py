"""How much of a map is inside boxes: the energy-based pointing game.

Paper: "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", Wang et al., CVPR Workshops
2020, arXiv 1910.01279, section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from yolov5_ema.explain.looks import Maps

_HEADS = (
    "model",
    "layer",
    "pictures",
    "Grad-CAM in boxes",
    "area of boxes",
    "ratio",
    "gate in boxes",
    "outside",
)


def mask_of(boxes: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre is in a box.

    Args:
        boxes: the centre and size of each, x before y, as fractions of the image, of shape (4,).
        size: the height and width of the image in pixels.

    Returns:
        bool, of shape ``size``.
    """
    height, width = size
    mask = np.zeros(size, bool)
    for x, y, w, h in boxes:
        ends = np.array([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
        left, top, right, bottom = np.ceil(np.clip(ends, 0, [width, height] * 2) - 0.5).astype(int)
        mask[top:bottom, left:right] = True
    return mask


def share_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """The fraction of a map's sum inside a mask; NaN if the map is 0 everywhere. Both have shape (H, W)."""
    total = float(values.sum(dtype=np.float64))
    return float(values[mask].sum(dtype=np.float64)) / total if total else float("nan")


@dataclass
class Tally:
    """How much of the maps of several models is inside labelled boxes; images without a box are left out."""

    _found: dict[tuple[str, str], list[tuple[float, ...]]] = field(default_factory=dict)

    def add(self, title: str, layers: Sequence[Maps], mask: np.ndarray) -> None:
        """Add an image.

        Args:
            title: the title of the model.
            layers: its maps of the image.
            mask: the image's pixels in boxes, bool of shape (H, W).
        """
        if not mask.any():
            return
        area = float(mask.mean())
        for maps in layers:
            key = (title, f"{maps.layer.name}: {maps.layer.kind}")
            values = (share_inside(maps.cam, mask), area, *_means(maps.gate, mask))
            self._found.setdefault(key, []).append(values)

    def rows(self) -> list[tuple[str, ...]]:
        """A table of texts with a header row; empty if no image had a box.

        Each figure is the mean over the images that have it: a map that is 0 everywhere has no fraction inside.
        """
        rows: list[tuple[str, ...]] = [_HEADS]
        for (title, layer), values in self._found.items():
            share, area, inside, outside = (_mean(column) for column in zip(*values))
            figures = map(_figure, (share, area, share / area, inside, outside))
            rows.append((title, layer, str(len(values)), *figures))
        return rows if self._found else []


def _means(gate: np.ndarray | None, mask: np.ndarray) -> tuple[float, float]:
    """The mean gate inside and outside of a mask; NaN if there is no gate or no pixel."""
    if gate is None:
        return float("nan"), float("nan")
    return _mean(gate[mask]), _mean(gate[~mask])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
