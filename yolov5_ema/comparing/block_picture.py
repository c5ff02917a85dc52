"""The picture of what blocks cost: the time that each adds to a detector, against its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from yolov5_ema.comparing.block_costs import BlockCost
from yolov5_ema.comparing.point_labels import PointLabel, marker_box, write_labels
from yolov5_ema.files import replacement

_COLOUR = "#0072B2"


def draw(costs: Sequence[BlockCost], path: Path, title: str) -> None:
    """Write a PNG with one point for each block that was measured.

    Args:
        costs: of the model without a block, and of the blocks, see `block_costs.block_costs`.
        path: the file to write.
        title: what was measured, and where.
    """
    # independent of the style that YOLOv5's plots set
    with style.context("default"), replacement(path, sync=False) as draft:
        compose(costs, title).savefig(draft, format="png")


def compose(costs: Sequence[BlockCost], title: str) -> Figure:
    """Make the figure; labels do not overlap each other or the points."""
    plain, *blocks = (cost for cost in costs if cost.detector_ms is not None)
    labels = [PointLabel(cost.block, cost.parameters or 0, 100 * ((cost.ratio or 1.0) - 1), _COLOUR) for cost in blocks]
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    zero = axes.axhline(0, color="black", linewidth=0.8)
    for one in labels:
        axes.plot(one.x, one.y, "o", color=_COLOUR, markersize=6)
    # blocks without parameters are on the left edge
    axes.set_xscale("symlog", linthresh=1)
    axes.margins(x=0.08, y=0.1)
    axes.set_xlim(left=-0.5)
    axes.set_xlabel("parameters of the blocks")
    axes.set_ylabel(f"time added to the detector, % (without a block: {plain.detector_ms:.1f} ms)")
    axes.set_title(title.replace("; ", "\n", 1), fontsize=9, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.draw_without_rendering()  # after this, the positions of all elements are known
    markers = [marker_box(axes, one.x, one.y, one.y) for one in labels]
    write_labels(axes, labels, [zero.get_window_extent().padded(1), *markers], fontsize=9)
    return figure
