"""The confusion matrix of a classifier as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolov5_ema.files import replacement
from yolov5_ema.texts import counted

_MOST_NUMBERS = 25  # with more classes, numbers are not written into the cells
_MOST_NAMES = 200  # with more classes, names are not written next to the rows


def draw_confusion(confusion: np.ndarray, names: list[str], file: Path) -> None:
    """Draw a confusion matrix in which each row shows shares of its class.

    Args:
        confusion: counts (classes, classes); rows are the truth, columns the prediction.
        names: names of the classes.
        file: the PNG to write, completely or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(names)
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = min(20.0, max(6.0, 2.5 + (0.62 if classes <= _MOST_NUMBERS else 0.16) * classes))
    figure = Figure(figsize=(side + 1, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, fraction=0.04)
    bar.set_label("share of the class (colours by its square root)")
    right = confusion.trace() / max(1, confusion.sum())
    axes.set_title(f"top-1 {right:.2%} of {counted(int(confusion.sum()), 'image')}")
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if classes <= _MOST_NAMES:
        size = 9 if classes <= _MOST_NUMBERS else 6.5
        short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        axes.set_xticks(range(classes), short, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), short, fontsize=size)
    if classes <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if shares[row, column] > 0.3 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    with replacement(file) as draft:
        figure.savefig(draft, format="png")
