"""The picture of what blocks cost: the time that each adds to a detector, against its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from yolov5_ema.comparing.block_costs import BlockCost
from yolov5_ema.files import replacement


@style.context("default")  # independent of the style that YOLOv5's plots set
def draw(costs: Sequence[BlockCost], path: Path, title: str) -> None:
    """Write a PNG with one point for each block that was measured.

    Args:
        costs: of the model without a block, and of the blocks, see `block_costs.block_costs`.
        path: the file to write.
        title: what was measured, and where.
    """
    plain, *blocks = (cost for cost in costs if cost.detector_ms is not None)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.8)
    for cost in blocks:
        point = (cost.parameters or 0, 100 * ((cost.ratio or 1.0) - 1))
        axes.plot(*point, "o", color="#0072B2", markersize=6)
        axes.annotate(cost.block, point, xytext=(5, 4), textcoords="offset points", fontsize=9)
    # blocks without parameters are on the left edge
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.5)
    axes.set_xlabel("parameters of the blocks")
    axes.set_ylabel(f"time added to the detector, % (without a block: {plain.detector_ms:.1f} ms)")
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    with replacement(path, sync=False) as draft:
        figure.savefig(draft, dpi=150, format="png")
