"""Labels of points in a picture, at places where they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.transforms import Bbox

_NEAR = 18  # points; a label further from its point gets a line to it
# offsets of a label from its point in points; the first free one is used
_OFFSETS = [
    (x * reach, y * reach)
    for reach in (9, 18, 30, 45, 60, 80, 100, 130)
    for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
]


@dataclass(frozen=True)
class PointLabel:
    """The label of a point: its text, the point in the units of the axes, and the colour of both."""

    text: str
    x: float
    y: float
    colour: str


def write_labels(axes: Any, labels: Sequence[PointLabel], taken: Sequence[Bbox], fontsize: float) -> None:
    """Write labels in the order given, each at the nearest free place beside its point.

    Args:
        axes: the axes, of a figure whose layout is known (``figure.draw_without_rendering()``).
        labels: the labels.
        taken: what they must not cover, such as the `marker_box` of each point; in pixels.
        fontsize: in points.
    """
    taken = list(taken)
    inside = axes.get_window_extent()
    for one in labels:
        place = {"xy": (one.x, one.y), "textcoords": "offset points"}
        label = axes.annotate(one.text, xytext=(0, 0), color=one.colour, fontsize=fontsize, **place)
        for offset in _OFFSETS:
            _place(label, offset)
            box = label.get_window_extent()
            if _is_free(box, inside, taken):
                break
        if max(map(abs, offset)) > _NEAR:
            line = {"arrowstyle": "-", "color": one.colour, "linewidth": 0.6}
            axes.annotate("", xytext=offset, arrowprops=line, **place)
        taken.append(box)


def marker_box(axes: Any, x: float, low: float, high: float) -> Bbox:
    """The box in pixels of the markers from (x, low) to (x, high), of up to 12 points in diameter."""
    half = 6 * axes.figure.dpi / 72
    left, bottom = axes.transData.transform((x, low))
    right, top = axes.transData.transform((x, high))
    return Bbox([[left - half, bottom - half], [right + half, top + half]])


def _is_free(box: Bbox, inside: Bbox, taken: Sequence[Bbox]) -> bool:
    fits = all(inside.contains(*corner) for corner in (box.min, box.max))
    return fits and not any(box.overlaps(other) for other in taken)


def _place(label: Any, offset: tuple[float, float]) -> None:
    x, y = offset
    label.set_position(offset)
    label.set_ha("left" if x > 0 else "right" if x < 0 else "center")
    label.set_va("bottom" if y > 0 else "top" if y < 0 else "center")
