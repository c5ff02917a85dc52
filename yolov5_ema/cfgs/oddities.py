"""Finds signs that rows were inserted into a model YAML without renumbering the references after them.

Such a model builds and trains, but is less accurate: no row reads a certain row, or Detect reads an intermediate result
between two levels. None of these signs is an error; `info`, `train` and `cfg` print them as warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.strides import gives_predictions, name_of

_LOGGER = logging.getLogger(__name__)

_INTERMEDIATE = {
    "Concat": "maps that no layer has joined yet",
    "nn.Upsample": "maps that are only enlarged",
    "Focus": "the image in pieces",
    "Contract": "maps in pieces",
    "Expand": "maps in pieces",
}
# gives no map; ultralytics' own models pass its output on
_IS_FOR_TEXTS = "ImagePoolingAttn"
_CONVOLUTIONS = ("Conv", "DWConv", "GhostConv")
_ADVICE = "rows may have been inserted without renumbering the references after them"


def likely_mistakes(graph: Graph) -> list[str]:
    """What looks like an oversight in a model YAML, one sentence for each.

    >>> from yolov5_ema.cfgs.generator import build_cfg
    >>> cfg = build_cfg(size="n", block="EMA", at="neck")
    >>> likely_mistakes(Graph.from_cfg(cfg))
    []
    >>> cfg["head"][-1][0] = [17, 20, 23]
    >>> for mistake in likely_mistakes(Graph.from_cfg(cfg)):
    ...     print(mistake)
    row 26 (C3) is read by nothing
    Detect reads row 17 (Concat): maps that no layer has joined yet
    Detect reads row 20 (Conv), which only halves the size of the maps before it
    Detect reads strides 8, 16, 16: each level needs its own stride, from fine to coarse
    """
    return [*_unread(graph), *_of_detect(graph)]


def log_warnings(found: Sequence[str], where: str) -> None:
    """Log the sentences of `likely_mistakes` as warnings."""
    for mistake in [*found, _ADVICE] if found else []:
        _LOGGER.warning("yolov5-ema: warning: %s: %s", where, mistake)


def _unread(graph: Graph) -> Iterator[str]:
    read = {source.row for row in graph.rows for source in row.sources}
    for index, row in enumerate(graph.rows):
        if row not in read and not gives_predictions(row.module) and name_of(row.module) != _IS_FOR_TEXTS:
            yield f"row {index} ({name_of(row.module)}) is read by nothing"


def _of_detect(graph: Graph) -> Iterator[str]:
    head = graph.rows[-1]
    inputs = [source.row for source in head.sources if source.row is not None]
    if not gives_predictions(head.module) or not inputs:
        return
    places = {row: index for index, row in enumerate(graph.rows)}
    for row in inputs:
        remark = _intermediate(row)
        if remark:
            yield f"{name_of(head.module)} reads row {places[row]} ({name_of(row.module)}){remark}"
    strides = dict(zip(graph.rows, graph.strides()))
    levels = [stride for stride in (strides[row] for row in inputs) if stride is not None]
    shown = ", ".join(f"{stride:g}" for stride in levels)
    if len(levels) == len(inputs) and levels not in (sorted(set(levels)), sorted(set(levels), reverse=True)):
        yield f"{name_of(head.module)} reads strides {shown}: each level needs its own stride, from fine to coarse"


def _intermediate(row: Row) -> str:
    name = name_of(row.module)
    if name in _INTERMEDIATE:
        return f": {_INTERMEDIATE[name]}"
    if name not in _CONVOLUTIONS:
        return ""
    kernel, stride = [*row.args[1:3], 1, 1][:2] if len(row.args) < 3 else row.args[1:3]
    if stride == 2:
        return ", which only halves the size of the maps before it"
    return ", which only narrows the maps before it, for the next level" if kernel == 1 else ""
