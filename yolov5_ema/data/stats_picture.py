"""Draw a picture of a data set: its classes and the sizes of its boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolov5_ema.data.stats import MARKS, SplitStats
from yolov5_ema.errors import UserError
from yolov5_ema.files import replacement

_COLOURS = {"train": "#3b6ea5", "val": "#e08a2e", "test": "#6aa35c"}
_INK, _FAINT = "#333333", "#d9d9d9"
_MOST_CLASSES = 40
_FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


def check_picture(file: Path) -> None:
    """Refuse a file name with an unknown format, before the work starts.

    Raises:
        UserError: matplotlib cannot write a file with this suffix.
    """
    if file.suffix.lower() not in _FORMATS:
        raise UserError(f"-o {file}: its suffix must be one of {', '.join(_FORMATS)}")


def save_picture(
    file: Path, title: str, names: Sequence[str], stats: Sequence[SplitStats], imgsz: int, sentence: str
) -> None:
    """Write the picture; an existing file is replaced.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    stats = [split for split in stats if split.boxes] or list(stats[:1])
    shown = min(len(names), _MOST_CLASSES)
    height = max(4.6, 1.9 + 0.13 * shown * (len(stats) + 0.6))
    figure = Figure(figsize=(12, height), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.25)})
    _draw_classes(left, names, stats)
    _draw_sizes(right, stats, imgsz)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=_INK)
    figure.supxlabel(textwrap.fill(sentence, 130), fontsize=9.5, color=_INK)
    with replacement(file, parents=True, sync=False) as draft:
        figure.savefig(draft, dpi=130, format=file.suffix[1:].lower())


def _draw_classes(axes, names: Sequence[str], stats: Sequence[SplitStats]) -> None:
    """Draw bars with the share of each class, the most frequent on top."""
    totals = sum(split.class_counts for split in stats)
    order = np.argsort(-np.asarray(totals), kind="stable")[:_MOST_CLASSES]
    thickness = 0.8 / len(stats)
    for number, split in enumerate(stats):
        share = 100 * split.class_counts[order] / max(1, split.boxes)
        places = np.arange(len(order)) + (number - (len(stats) - 1) / 2) * thickness
        axes.barh(places, share, thickness * 0.92, color=_COLOURS[split.split])
    axes.set_yticks(np.arange(len(order)), [names[index] for index in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel("% of the split's boxes")
    more = f", the {_MOST_CLASSES} commonest of {len(names)}" if len(names) > _MOST_CLASSES else ""
    axes.set_title(f"classes{more}", loc="left", fontsize=11, color=_INK)
    _plain(axes, grid="x")


def _draw_sizes(axes, stats: Sequence[SplitStats], imgsz: int) -> None:
    """Draw a histogram over a logarithmic axis, with marks at the cell sizes of the finest head."""
    largest = max((float(split.sizes.max(initial=1)) for split in stats), default=1.0)
    edges = np.geomspace(2, max(64.0, largest * 1.2), 45)
    for split in stats:
        if not split.boxes:
            continue
        counts, _ = np.histogram(np.clip(split.sizes, edges[0], edges[-1]), edges)
        share = 100 * counts / split.boxes
        axes.stairs(share, edges, color=_COLOURS[split.split], linewidth=1.8, label=split.split)
        axes.stairs(share, edges, color=_COLOURS[split.split], alpha=0.12, fill=True)
    axes.set_xscale("log", base=2)
    ticks = [tick for tick in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if edges[0] <= tick <= edges[-1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]) * 1.18)
    first = stats[0]
    for mark in MARKS:
        axes.axvline(mark, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        text = f"{first.share_below(mark):.0%} below {mark}"
        axes.annotate(
            text, (mark, 0.985), xycoords=("data", "axes fraction"), xytext=(-3, 0), textcoords="offset points",
            ha="right", va="top", rotation=90, fontsize=8.5, color=_INK,
        )  # fmt: skip
    axes.set_xlabel(f"square root of the box's area, pixels at imgsz {imgsz}")
    axes.set_ylabel("% of the split's boxes")
    axes.set_title(f"sizes (shares: {first.split})", loc="left", fontsize=11, color=_INK)
    if any(split.boxes for split in stats):
        axes.legend(frameon=False, loc="upper right")
    _plain(axes, grid="y")


def _plain(axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
