"""The picture of a comparison: the result of each seed, and the differences between models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from yolov5_ema.comparing.intervals import BETTER, WORSE
from yolov5_ema.comparing.report import METRICS, Report, Row, percent
from yolov5_ema.files import replacement

# can also be distinguished with red-green colour blindness
_COLOURS = {BETTER: "#0072B2", WORSE: "#D55E00"}
_UNDECIDED = "#555555"
_SEED_COLOUR = "#999999"
_BEHIND_WORDS = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}


@style.context("default")  # independent of the style that YOLOv5's plots set
def draw(report: Report, path: Path, subtitle: str) -> None:
    """Write a PNG with one row of panels for each metric: left the results by seed, right the differences.

    Args:
        report: the report to show.
        path: the file to write.
        subtitle: what was trained, in one or two lines.
    """
    lines = len(report.rows)
    figure = Figure(figsize=(12, 0.7 + len(METRICS) * (0.9 + 0.55 * lines)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(subtitle, fontsize=10)
    panels = figure.subplots(len(METRICS), 2, squeeze=False, gridspec_kw={"width_ratios": (1.25, 1)})
    for (left, right), (metric, label) in zip(panels, METRICS.items()):
        _draw_figures(left, report, metric, label)
        _draw_differences(right, report, metric, label)
    with replacement(path, sync=False) as draft:
        figure.savefig(draft, dpi=150, format="png")


def _draw_figures(axes: Any, report: Report, metric: str, label: str) -> None:
    for seed in report.seeds:
        found = [(row.model.figures.get(metric, {}).get(seed), place) for place, row in enumerate(report.rows)]
        points = [(value, place) for value, place in found if value is not None]
        if points:
            axes.plot(*zip(*points), "-o", color=_SEED_COLOUR, linewidth=0.7, markersize=4, alpha=0.8)
    for place, row in enumerate(report.rows):
        summary = row.summaries[metric]
        if summary is None:
            axes.text(0.5, place, "missing", transform=axes.get_yaxis_transform(), ha="center", va="center")
            continue
        axes.plot(summary.mean, place, "D", color="black", markersize=6, zorder=3)
        if summary.low is not None and summary.high is not None:
            axes.plot([summary.low, summary.high], [place, place], color="black", linewidth=1.6, zorder=2)
        _annotate(axes, f"{summary.mean:.3f}", summary.mean, place, "black")
    _finish(axes, report, f"{label}: each seed, joined; mean and its {percent(report.confidence)} interval")
    axes.set_yticks(range(len(report.rows)), [_described(row) for row in report.rows])


def _draw_differences(axes: Any, report: Report, metric: str, label: str) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for place, row in enumerate(report.rows):
        difference = row.differences.get(metric)
        if difference is None:
            words = "baseline" if row.is_baseline else "no pair of figures"
            _annotate(axes, words, 0, place, _UNDECIDED)
            continue
        colour = _COLOURS.get(difference.verdict, _UNDECIDED)
        axes.plot(difference.mean, place, "D", color=colour, markersize=6)
        if difference.low is not None and difference.high is not None:
            axes.plot([difference.low, difference.high], [place, place], color=colour, linewidth=2)
        _annotate(axes, f"{difference.mean:+.3f}: {difference.verdict}", difference.mean, place, colour)
    title = f"{label}: paired difference to {report.baseline.model.name}, {percent(report.level)} interval"
    _finish(axes, report, title)
    axes.set_yticks(range(len(report.rows)), [""] * len(report.rows))
    reach = 1.3 * max(0.005, *map(abs, axes.dataLim.intervalx))
    axes.set_xlim(-reach, reach)  # 0, the baseline's own difference, is in the middle


def _annotate(axes: Any, words: str, x: float, place: int, colour: str) -> None:
    """Write words above a point, on white because lines may cross there."""
    above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(words, (x, place), **above, color=colour, fontsize=9, bbox=_BEHIND_WORDS, zorder=4)


def _finish(axes: Any, report: Report, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylim(len(report.rows) - 0.5, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _described(row: Row) -> str:
    cost = [f"{row.model.parameters / 1e6:.2f} M", f"{row.model.gflops:.2f} GFLOPs"]
    if row.latency is not None:
        cost.append(f"{row.latency.median:.1f} ms")
    engine = f" ({row.model.engine})" if row.model.engine else ""
    return f"{row.model.name}{engine}\n{', '.join(cost)}"
