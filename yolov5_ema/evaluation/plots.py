"""Pictures of an evaluation: precision over recall, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.figure import Figure

from yolov5_ema.evaluation.confusion import ConfusionMatrix
from yolov5_ema.evaluation.results import Result
from yolov5_ema.files import replacement

_MOST_NAMED = 20
"""More classes than this are drawn in grey, without names."""


@style.context("default")  # independent of the style that YOLOv5's plots set
def save_pr_curves(results: Sequence[Result], file: Path) -> None:
    """Draw a panel for each protocol: precision over recall at IoU 0.5, with a line for each class and their mean.

    Args:
        results: the results of the protocols.
        file: the PNG to write.
    """
    figure = Figure(figsize=(5.4 * len(results) + 1.6, 5.0), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    colours = _colours(list(dict.fromkeys(name for result in results for name in result.curves)))
    for panel, result in zip(axes, results):
        _draw_curves(panel, result, colours)
    axes[0].set_ylabel("precision")
    with replacement(file, sync=False) as draft:
        figure.savefig(draft, dpi=150, format="png")


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """The colour of each class, the same in each panel; empty if there are too many classes."""
    if len(names) > _MOST_NAMED:
        return {}
    table = colormaps["tab20" if len(names) > 10 else "tab10"]
    return {name: table(index) for index, name in enumerate(names)}


def _draw_curves(panel: Any, result: Result, colours: dict[str, Any]) -> None:
    recalls = np.linspace(0, 1, 1001)
    lines = {name: curve.at(recalls) for name, curve in result.curves.items()}
    for name, line in lines.items():
        label = name if colours else None
        panel.plot(recalls, line, linewidth=1.2, color=colours.get(name, "0.75"), label=label)
    if lines:
        mean = np.mean(list(lines.values()), axis=0)
        panel.plot(recalls, mean, color="black", linewidth=2.4, label="mean of the classes")
        panel.legend(fontsize=7, loc="lower left", framealpha=0.9)
    panel.set(title=f"{result.protocol}, IoU 0.5", xlabel="recall", xlim=(0, 1), ylim=(0, 1.01))
    panel.grid(color="0.9")


@style.context("default")
def save_confusion_matrix(matrix: ConfusionMatrix, file: Path) -> None:
    """Draw the matrix with each column as fractions of its sum.

    A column is a true class; the last one holds the detections without an object.

    Args:
        matrix: the counts.
        file: the PNG to write.
    """
    names = [*matrix.names, "background"]
    totals = matrix.counts.sum(axis=0, keepdims=True)
    shares = np.divide(matrix.counts, totals, out=np.zeros(matrix.counts.shape), where=totals > 0)
    side = float(np.clip(0.45 * len(names) + 3.2, 5, 20))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set(xlabel="true class", ylabel="detected as")
    panel.set_title(f"confidence above {matrix.confidence:g}, IoU above {matrix.iou:g}", fontsize=10)
    if len(names) <= 31:
        for row, column in zip(*np.nonzero(shares >= 0.005)):
            shade = "white" if shares[row, column] > 0.5 else "black"
            text = f"{shares[row, column]:.2f}"
            panel.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image, ax=panel, shrink=0.8, label="share of the column")
    with replacement(file, sync=False) as draft:
        figure.savefig(draft, dpi=150, format="png")
