"""Draws a PNG for each picture: a row for each layer, and in it the gate map and Grad-CAM of each model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from yolov5_ema.data.detections import Detections
from yolov5_ema.explain.looks import Look, Maps

LEAST_SPAN = 0.1
"""Minimum width of the gates' colour scale, so that gates that hardly vary look almost uniform."""

_GATES, _CAMS = colormaps["viridis"].with_extremes(bad="0.85"), colormaps["inferno"]
_BOX = "#00E5FF"
_DPI = 100
_CELL, _GAP, _LINE = 2.6, 0.12, 0.19  # inches
_WORDS = 58  # characters of a line above two cells


@dataclass(frozen=True)
class Column:
    """One model's part of the PNG.

    Attributes:
        title: the title of the model.
        look: the picture as the model sees it.
        maps: the maps of the model's layers, by place.
    """

    title: str
    look: Look
    maps: Mapping[str, Maps]


class Drawn(NamedTuple):
    """A PNG, with its width and height in pixels."""

    png: bytes
    size: tuple[int, int]


# YOLOv5's plots change matplotlib's settings; the context sets them back to the defaults.
@style.context("default")
def draw(columns: Sequence[Column], places: Sequence[str]) -> Drawn:
    """Draw the PNG of a picture: at the top the picture with each model's detections, below it the maps by place.

    All gate maps share one colour scale, at least `LEAST_SPAN` wide. Each Grad-CAM has its own colour scale.

    Args:
        columns: one for each model.
        places: the places of the models' layers, from top to bottom.
    """
    layout = _Layout(columns, len(places))
    scale = _gate_scale(columns)
    for number, column in enumerate(columns):
        layout.heading(number, column)
        for row, place in enumerate(places, 1):
            maps = column.maps.get(place)
            if maps is None:
                layout.words(number, row, "this model has no such place")
                continue
            _draw_maps(layout, number, row, maps, column.look, scale)
    layout.bars(scale)
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters of a file name that are missing from the font
        layout.figure.savefig(stream, dpi=_DPI, format="png")
    return Drawn(stream.getvalue(), layout.pixels)


def _draw_maps(layout: _Layout, number: int, row: int, maps: Maps, look: Look, scale: Normalize) -> None:
    layer = maps.layer
    layout.label(number, row, f"{layer.name}: {layer.kind} · {layer.channels} channels · stride {layer.stride}")
    if maps.gate is not None and maps.gate_range is not None:
        axes = layout.cell(number, row, 0, "gate {:.3f} · {:.3f} · {:.3f}".format(*maps.gate_range))
        axes.imshow(maps.gate, cmap=_GATES, norm=scale, interpolation="nearest")
        _draw_boxes(axes, look.found, "white", 0.6)
    else:
        layout.words(number, row, "not a block, so it has no gate")
    peak = float(maps.cam.max())
    axes = layout.cell(number, row, 1, maps.method if peak > 0 else f"{maps.method}: 0 everywhere")
    axes.imshow(blended(look.picture, maps.cam), interpolation="nearest")
    _draw_boxes(axes, look.found, _BOX, 0.6)


def blended(picture: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Grad-CAM drawn over the grey picture: dark where it is 0, bright where it is highest.

    Args:
        picture: uint8 of shape (H, W, 3).
        cam: Grad-CAM, of shape (H, W), not negative.

    Returns:
        RGB, uint8 of shape (H, W, 3).
    """
    peak = float(cam.max())
    colours = _CAMS(cam / peak if peak > 0 else np.zeros_like(cam))[..., :3] * 255  # (H, W, 3)
    grey = picture.mean(axis=2, keepdims=True)
    return (0.4 * grey + 0.6 * colours).round().astype(np.uint8)


def _gate_scale(columns: Sequence[Column]) -> Normalize:
    ranges = [maps.gate_range for column in columns for maps in column.maps.values() if maps.gate_range is not None]
    ends = [end for low, _, high in ranges for end in (low, high) if np.isfinite(end)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    widening = max(0.0, LEAST_SPAN - (high - low)) / 2
    return Normalize(low - widening, high + widening)


def _draw_boxes(axes: Any, found: Detections, colour: str, width: float) -> None:
    for left, top, right, bottom in found.xyxy:
        across, down = [left, right, right, left, left], [top, top, bottom, bottom, top]
        axes.plot(np.subtract(across, 0.5), np.subtract(down, 0.5), color=colour, linewidth=width)


class _Layout:
    """The positions of everything on the figure, in inches from its top left corner."""

    def __init__(self, columns: Sequence[Column], rows: int) -> None:
        height, width = columns[0].look.picture.shape[:2]
        self._tall = _CELL * min(4.0, max(0.25, height / width))
        self._wide = 2 * _CELL + _GAP
        self._top = 3 * _LINE + self._tall  # where the first row of maps begins
        self._pitch = self._tall + 2.4 * _LINE
        self._has_gates = any(maps.gate is not None for one in columns for maps in one.maps.values())
        self._size = (
            len(columns) * (self._wide + 2 * _GAP),
            self._top + rows * self._pitch + 0.75,
        )
        self.figure = Figure(figsize=self._size, dpi=_DPI)
        FigureCanvasAgg(self.figure)

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of the figure."""
        width, height = self.figure.canvas.get_width_height()
        return int(width), int(height)

    def heading(self, number: int, column: Column) -> None:
        left = self._left(number)
        self._text(left, 0.8 * _LINE, shortened(column.title, _WORDS), size=9, weight="bold")
        self._text(left, 1.8 * _LINE, shortened(column.look.words, _WORDS + 10), size=7.5)
        beside = left + _CELL + _GAP
        for line, text in enumerate(column.look.details[: max(1, int(self._tall / _LINE))]):
            self._text(beside, (2.9 + line) * _LINE, shortened(text, _WORDS // 2), size=7.5)
        axes = self._axes(left, 2.4 * _LINE, _CELL, self._tall)
        axes.imshow(column.look.picture, interpolation="nearest")
        _draw_boxes(axes, column.look.found, _BOX, 1.0)

    def label(self, number: int, row: int, text: str) -> None:
        self._text(self._left(number), self._row(row) - 1.65 * _LINE, shortened(text, _WORDS + 5), size=8)

    def cell(self, number: int, row: int, place: int, text: str) -> Any:
        left = self._left(number) + place * (_CELL + _GAP)
        self._text(left, self._row(row) - 0.65 * _LINE, text, size=7.5)
        return self._axes(left, self._row(row), _CELL, self._tall)

    def words(self, number: int, row: int, text: str) -> None:
        self._text(self._left(number), self._row(row), text, size=8, color="0.4")

    def bars(self, scale: Normalize) -> None:
        top = self._size[1] - 0.55
        if self._has_gates:
            self._bar(0, top, scale, _GATES, "gate (above the maps: minimum · mean · maximum)")
        self._bar(1, top, Normalize(0, 1), _CAMS, "Grad-CAM or HiResCAM, relative to each map's maximum")

    def _bar(self, place: int, top: float, scale: Normalize, colours: Any, text: str) -> None:
        left = self._left(0) + place * (_CELL + _GAP) + _GAP
        axes = self._axes(left, top, _CELL - 2.5 * _GAP, 0.12)
        axes.set_axis_on()
        bar = self.figure.colorbar(ScalarMappable(scale, colours), cax=axes, orientation="horizontal")
        ticks = np.linspace(*bar.ax.get_xlim(), 5)
        bar.set_ticks(list(ticks), labels=[f"{tick:.3g}" for tick in ticks])
        bar.ax.tick_params(labelsize=6.5)
        self._text(left, top + 0.4, text, size=6)

    def _left(self, number: int) -> float:
        return _GAP + number * (self._wide + 2 * _GAP)

    def _row(self, row: int) -> float:
        return self._top + (row - 1) * self._pitch + 2.1 * _LINE

    def _axes(self, left: float, top: float, width: float, height: float) -> Any:
        total_width, total_height = self._size
        box = (
            left / total_width,
            1 - (top + height) / total_height,
            width / total_width,
            height / total_height,
        )
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        axes.set_anchor("W")
        return axes

    def _text(self, left: float, top: float, text: str, **options: Any) -> None:
        place = (left / self._size[0], 1 - top / self._size[1])
        self.figure.text(*place, text, va="center", parse_math=False, **options)


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters; of a longer text, the middle is left out."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2 - 1]} … {text[len(text) - most // 2 + 2 :]}"
