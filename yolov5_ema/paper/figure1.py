"""The paper's Figure 1: accuracy on CIFAR-100 against parameters, from the paper's numbers and from own runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from yolov5_ema.classification import create_paper_model
from yolov5_ema.comparing.point_labels import PointLabel, marker_box, write_labels
from yolov5_ema.errors import UserError
from yolov5_ema.paper.printed import accuracy_source, printed_tables
from yolov5_ema.reading import read_json
from yolov5_ema.texts import counted

_SIZE, _DPI = (8.0, 5.5), 150
# these colours can also be distinguished with red-green colour blindness
_PAPER, _YOURS, _EMA = "#555555", "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Point:
    """A model: its parameters in millions, and the top-1 in percent of one or several runs."""

    label: str
    parameters: float
    top1: tuple[float, ...]
    from_paper: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)


def paper_points(plain: bool = False) -> list[Point]:
    """Return ResNet50 and its variants from Table 1.

    Args:
        plain: count all parameters of the built models. Otherwise the paper's printed numbers are used, which are
            counted in two different ways.
    """
    points = []
    for row in printed_tables()[0].rows:
        if not row.classifier.startswith("resnet50"):
            continue
        parameters = _plain_parameters(row.classifier) if plain else float(row.parameters)
        points.append(Point(row.label.lstrip("+ "), parameters, (float(row.accuracy["top1"]),), True))
    return points


def run_points(runs: Sequence[Path]) -> list[Point]:
    """Read runs of `yolov5-ema classify`; runs with the same model, block and number of parameters become one point.

    Args:
        runs: folders with a ``metrics.json``, or such files.

    Raises:
        UserError: one of them is not a run of a classifier.
    """
    groups: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        label, parameters, top1 = _read_run(run)
        groups.setdefault((label, parameters), []).append(top1)
    return [Point(label, parameters, tuple(top1), False) for (label, parameters), top1 in groups.items()]


def draw(points: Sequence[Point], files: Sequence[Path]) -> None:
    """Write the picture to each file, in the format of its name (PNG, SVG)."""
    # independent of the style that YOLOv5's plots set, and the same bytes each time
    with style.context("default"), rc_context({"svg.hashsalt": "figure1", "font.size": 10}):
        figure = compose(points)
        for file in files:
            kind = "svg" if ".svg" in file.name else "png"
            figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)


def compose(points: Sequence[Point]) -> Figure:
    """Make the figure; labels do not overlap each other or the points."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _mark(axes, points)
    _frame(axes, points)
    figure.draw_without_rendering()  # after this, the positions of all elements are known
    _label(axes, points)
    return figure


def _plain_parameters(name: str) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in create_paper_model(name).parameters()) / 1e6


def _read_run(run: Path) -> tuple[str, float, float]:
    file = run / "metrics.json" if run.is_dir() else run
    try:
        content = read_json(file)
        model, block = str(content["model"]), content.get("block")
        parameters, top1 = float(content["parameters"]), float(content["top1"])
    except FileNotFoundError as error:
        raise UserError(
            f"{run}: no metrics.json; name a run of `yolov5-ema classify train` (runs/classify/exp)"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: not the metrics of a classifier: {type(error).__name__} {error}") from error
    if not 0 <= top1 <= 1 or parameters <= 0:
        raise UserError(f"{file}: top1 {top1} must be from 0 to 1, and parameters {parameters:.0f} above 0")
    return f"{model} + {block}" if block else model, parameters / 1e6, 100 * top1


def _mark(axes: Any, points: Sequence[Point]) -> None:
    for point in points:
        look = {
            "marker": "o" if point.from_paper else "D",
            "markersize": 8,
            "linestyle": "none",
            "zorder": 3,
        }
        axes.plot(point.parameters, point.mean, color=_colour(point), **look)
        if len(point.top1) > 1:
            axes.plot(
                [point.parameters] * 2,
                [min(point.top1), max(point.top1)],
                color=_colour(point),
                linewidth=1.5,
            )
            axes.plot([point.parameters] * len(point.top1), point.top1, "_", color=_colour(point), markersize=9)


def _colour(point: Point) -> str:
    if not point.from_paper:
        return _YOURS
    return _EMA if point.label == "EMA" else _PAPER


def _frame(axes: Any, points: Sequence[Point]) -> None:
    axes.margins(x=0.14, y=0.14)
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    notes = []
    if any(point.from_paper for point in points):
        axes.plot([], [], "o", color=_PAPER, label="the paper: ResNet50 on CIFAR-100")
        notes.append(f"The paper's accuracies: {accuracy_source()}.")
    if any(not point.from_paper for point in points):
        axes.plot([], [], "D", color=_YOURS, label="own runs: mean, and each run if there are several")
        notes.append("Own runs are comparable only on the same data with the same recipe.")
    axes.legend(loc="lower right", fontsize=9)
    axes.figure.supxlabel("\n".join(notes), fontsize=7.5, color="#555555", x=0.01, ha="left")


def _label(axes: Any, points: Sequence[Point]) -> None:
    ordered = sorted(points, key=lambda point: (point.parameters, point.mean))
    labels = [PointLabel(_text(point), point.parameters, point.mean, _colour(point)) for point in ordered]
    markers = [marker_box(axes, point.parameters, min(point.top1), max(point.top1)) for point in points]
    write_labels(axes, labels, [axes.get_legend().get_window_extent(), *markers], fontsize=10)


def _text(point: Point) -> str:
    return point.label if len(point.top1) == 1 else f"{point.label} ({counted(len(point.top1), 'run')})"
