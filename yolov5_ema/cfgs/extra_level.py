"""A fourth level at stride 4, for models whose neck is that of YOLOv8 and later: ``--head p2``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from yolov5_ema.cfgs.graph import Graph, Row, Source
from yolov5_ema.cfgs.places import stage_at
from yolov5_ema.cfgs.strides import gives_predictions, name_of, stride_factor
from yolov5_ema.cfgs.values import is_int
from yolov5_ema.errors import ConfigError

_FINEST = 8.0
# arguments below it are no channels
_FEWEST_CHANNELS = 16
# A2C2f needs 32 channels inside, also at a quarter of the width
_LEAST = {"A2C2f": 256}
# their forward asserts that there are three levels
_WITH_THREE_LEVELS = "YOLOE"


def add_stride_4(graph: Graph) -> None:
    """Extend the neck of a model by a level at stride 4, which the head reads in addition to its own.

    The new rows repeat the steps of the neck between strides 8 and 16 with half their channels. For YOLOv8 and YOLO26,
    the result is what ultralytics' own ``-p2`` YAMLs hold.

    Raises:
        ConfigError: the model's neck is different, or it has such a level.
    """
    head = graph.rows[-1]
    strides = dict(zip(graph.rows, graph.strides()))
    finest = head.sources[0].row
    if not gives_predictions(head.module) or finest is None:
        raise _refusal(graph, "its last row gives no predictions")
    if name_of(head.module).startswith(_WITH_THREE_LEVELS):
        raise _refusal(graph, f"{name_of(head.module)} takes three levels only")
    if strides[finest] == _FINEST / 2:
        raise ConfigError(f"{graph.name} has a level at stride 4: leave --head p2 out")
    if finest.section != "head" or strides[finest] != _FINEST:
        raise _refusal(graph, f"{name_of(head.module)} reads no neck at stride 8")
    lateral = stage_at(graph, "backbone", _FINEST / 2)
    if lateral is None:
        raise _refusal(graph, "its backbone has no stage at stride 4")
    place = graph.rows.index(finest)
    if not _is_step_up(graph.rows[place - 2 : place + 1]) or not _is_step_down(graph.rows[place : place + 4]):
        raise _refusal(graph, "its neck is not made of Upsample, Concat, stage and convolution, Concat, stage")
    _insert(graph, place, lateral)


def _is_step_up(rows: Sequence[Row]) -> bool:
    modules = [row.module for row in rows]
    return len(rows) == 3 and modules[:2] == ["nn.Upsample", "Concat"] and _is_chain(rows)


def _is_step_down(rows: Sequence[Row]) -> bool:
    if len(rows) != 4 or not _is_chain(rows):
        return False
    _, down, joined, stage = rows
    return (
        joined.module == "Concat" and stride_factor(down.module, down.args) == 2 and not gives_predictions(stage.module)
    )


def _is_chain(rows: Sequence[Row]) -> bool:
    """Whether each row reads the one before it, and a Concat one more."""
    reads_last = all(row.sources[0].row is before for before, row in itertools.pairwise(rows))
    return reads_last and all(len(row.sources) == 2 for row in rows if row.module == "Concat")


def _refusal(graph: Graph, why: str) -> ConfigError:
    return ConfigError(f"--head p2: a level at stride 4 cannot be derived for {graph.name}: {why}")


def _insert(graph: Graph, place: int, lateral: Row) -> None:
    up, _, finest, down, _, coarser = graph.rows[place - 2 : place + 4]
    enlarged = _like(up, Source(finest, True), halves=False)
    joined = _joining(enlarged, lateral)
    tiny = _like(finest, Source(joined, True))
    reduced = _like(down, Source(tiny, True))
    rejoined = _joining(reduced, finest)
    new = _like(coarser, Source(rejoined, True))
    for row in graph.rows:
        row.sources = [source._replace(row=new) if source.row is finest else source for source in row.sources]
    graph.rows[place + 1 : place + 1] = [enlarged, joined, tiny, reduced, rejoined, new]
    graph.rows[-1].sources.insert(0, Source(tiny, False))


def _joining(row: Row, other: Row) -> Row:
    return Row("head", [Source(row, True), Source(other, False)], True, 1, "Concat", [1])


def _like(row: Row, source: Source, *, halves: bool = True) -> Row:
    """A row with the module of another, and half its channels."""
    args = [_half(value, _LEAST.get(row.module, 0)) for value in row.args] if halves else list(row.args)
    return Row("head", [source], False, row.number, row.module, args)


def _half(value: Any, least: int) -> Any:
    return max(value // 2, least) if is_int(value) and value >= _FEWEST_CHANNELS else value
