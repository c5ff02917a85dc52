"""Rewrites a model YAML of other code so that its attention blocks are those of this package.

Tutorials and repositories give the blocks other names (``CoordAtt``), write numbers of channels in their rows, and
insert rows without renumbering the references after them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from yolov5_ema.blocks import registry
from yolov5_ema.blocks.positions import UnclearNumbersError, options_of, readings_in_foreign_rows
from yolov5_ema.cfgs.block_channels import Size, channels_of, sizes_of
from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.oddities import likely_mistakes
from yolov5_ema.cfgs.values import flow
from yolov5_ema.errors import ConfigError
from yolov5_ema.upstream.ultralytics import is_cfg_of_ultralytics

_NOMINAL = Size("", 1.0, math.inf)


class Translation(NamedTuple):
    """A rewritten model, and one sentence for each change."""

    graph: Graph
    changes: list[str]


def translated(cfg: Any, name: str = "the model cfg") -> Translation:
    """A model YAML of other code, with the blocks of this package.

    Args:
        cfg: the content of the YAML.
        name: the file's name, for messages.

    Raises:
        ConfigError: the YAML is invalid, or the arguments of a block can be read in more than one way.
    """
    graph = Graph.from_cfg(cfg, name, of_ultralytics=is_cfg_of_ultralytics(cfg))
    changes = _rename(graph)
    _mark_blocks(graph)
    changes += _name_options(graph)
    renumbered = _renumbered(graph)
    if renumbered is None:
        return Translation(graph, changes)
    return Translation(renumbered, [*changes, *_moved_references(graph, renumbered)])


def _rename(graph: Graph) -> list[str]:
    """Give the blocks the names that they have here, in place."""
    changes = []
    for index, row in enumerate(graph.rows):
        called = "" if registry.block_of(row.module) else registry.block_called(str(row.module))
        if called:
            changes.append(f"row {index}: {row.module} is called {called} here")
            row.module = called
    return changes


def _mark_blocks(graph: Graph) -> None:
    for row in graph.rows:
        row.attends = bool(registry.block_of(row.module))


def _name_options(graph: Graph) -> list[str]:
    """Leave out numbers of channels in the rows of blocks, and name the options after them, in place."""
    blocks = [row for row in graph.rows if row.attends]
    written = [channels_of(graph, size) for size in (_NOMINAL, *sizes_of(graph))]
    changes = []
    for row in blocks:
        incoming = {channels[row] for channels in written} - {None}
        args = _options(row, incoming, f"{graph.name}, {row.section} row {graph.rows.index(row)}")
        if args != row.args:
            changes.append(f"row {graph.rows.index(row)}: {row.module} {flow(row.args)} becomes {flow(args)}")
            row.args = args
    return changes


def _options(row: Row, channels: Collection[int | None], place: str) -> list[Any]:
    """The arguments of a block's row without numbers of channels."""
    block = registry.get_block(registry.block_of(row.module))
    values = [value for value in row.args if not isinstance(value, dict)]
    found = readings_in_foreign_rows(options_of(block), values, {count for count in channels if count})
    if not found:
        return row.args
    if len(found) > 1 or "no option takes" in found[0].meaning:
        raise ConfigError(
            f"{place}: {UnclearNumbersError(row.module, values, found).in_row()}. Write it so, and translate again"
        )
    named: dict[str, Any] = {}
    for given in (found[0].options, *(value for value in row.args if isinstance(value, Mapping))):
        named.update(given)
    return [named] if named else []


def _renumbered(graph: Graph) -> Graph | None:
    """The model as it is if its row numbers are those of the model without blocks; None unless this mends mistakes."""
    if not likely_mistakes(graph):
        return None
    cfg, places = graph.to_cfg(), _places_without_blocks(graph)
    for row in (row for section in ("backbone", "head") for row in cfg[section]):
        several = isinstance(row[0], list)
        moved = [_moved(number, places) for number in (row[0] if several else [row[0]])]
        row[0] = moved if several else moved[0]
    try:
        found = Graph.from_cfg(cfg, graph.name, of_ultralytics=graph.of_ultralytics)
    except ConfigError:
        return None
    _mark_blocks(found)
    return None if likely_mistakes(found) else found


def _places_without_blocks(graph: Graph) -> list[int]:
    """For each row of the model without blocks, where its output is now: its own row, or that of the block behind."""
    places: list[int] = []
    for index, row in enumerate(graph.rows):
        if not row.attends:
            places.append(index)
        elif places:
            places[-1] = index
    return places


def _moved(number: int, places: Sequence[int]) -> int:
    return places[number] if 0 <= number < len(places) else number


def _moved_references(before: Graph, after: Graph) -> list[str]:
    old, new = (
        [row for section in ("backbone", "head") for row in graph.to_cfg()[section]] for graph in (before, after)
    )
    return [
        f"row {index}: {mine[2]} reads {flow(mine[0])}, not {flow(theirs[0])}, which are the row numbers of the model "
        "without its blocks"
        for index, (theirs, mine) in enumerate(zip(old, new))
        if theirs[0] != mine[0]
    ]
