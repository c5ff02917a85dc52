"""Charts of the page: matplotlib draws them as SVG inside the HTML, in the colours of the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Distinct for people with red-green colour blindness, with a contrast of at least 3:1 on white and on black.
COLOURS = (
    "#1f77b4",
    "#d1560f",
    "#16876a",
    "#b0529c",
    "#8a6d00",
    "#5b67d8",
    "#c23b4b",
    "#5f7d1f",
    "#0f86a6",
    "#7c6a5d",
)
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

# Placeholders for the page's own colours, which differ in dark mode and in print.
_INK, _GRID = "#010203", "#040506"
# matplotlib draws no ticks on an axis with larger values.
_MOST_DRAWN = 1e30
_INCHES, _SMALL_INCHES = (4.1, 2.6), (3.1, 2.2)


@dataclass(frozen=True)
class Line:
    """A line of a chart. NaN in ``y`` leaves a gap. ``colour`` and ``dash`` are counted from 0."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0
    is_strong: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    key: str,
    x_label: str,
    y_label: str = "",
    unit_square: bool = False,
    whole_x: bool = False,
    is_small: bool = False,
) -> str:
    """A chart as an ``<svg>`` element. It holds no text of the user's: titles and legends belong to the page.

    Args:
        lines: the lines to draw.
        key: letters and digits, unique among the charts of the page.
        x_label: name of the x axis.
        y_label: name of the y axis.
        unit_square: whether both axes run from 0 to 1.
        whole_x: whether x ticks are only at whole numbers.
        is_small: whether the chart is sized for four in a row instead of three.
    """
    with style.context("default"), matplotlib.rc_context(_settings()):
        figure = Figure(figsize=_SMALL_INCHES if is_small else _INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        for line in lines:
            _draw(panel, line)
        panel.set(xlabel=x_label, ylabel=y_label)
        panel.grid(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.02)
        if whole_x:
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            # a single point would have ticks between whole numbers, and without one nothing sets the limits
            if panel.dataLim.width < 1:
                x = [value for line in lines for value in line.x] or [0]
                panel.set_xlim(min(x) - 1, max(x) + 1)
        if unit_square:
            panel.set(xlim=(0, 1.005), ylim=(0, 1.01))
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), key)


def _draw(panel: Any, line: Line) -> None:
    y = [value if abs(value) < _MOST_DRAWN else math.nan for value in line.y]
    # a line of one point cannot be seen
    few = sum(map(math.isfinite, y)) <= 2
    panel.plot(
        line.x,
        y,
        color=_INK if line.is_strong else COLOURS[line.colour % len(COLOURS)],
        linestyle=DASHES[line.dash % len(DASHES)],
        linewidth=2.4 if line.is_strong else 1.6,
        marker="o" if few else None,
        markersize=4,
    )


def _settings() -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "yolov5-ema",
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.7),
    }


def _inline(svg: str, key: str) -> str:
    """The SVG without its XML header, with the page's colours and font, and with unique ids."""
    svg = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"(?<=<g) id=\"[^\"]*\""):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
