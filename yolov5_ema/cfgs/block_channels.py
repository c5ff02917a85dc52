"""Checks that a block can be built at its places in a generated model YAML, before the engine builds the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.strides import name_of
from yolov5_ema.errors import ConfigError

_PASSES_ON = ("AIFI", "nn.BatchNorm2d", "nn.Identity", "nn.MaxPool2d", "nn.Upsample", "nn.ZeroPad2d")
# where a module's arguments give the share of its channels that its bottlenecks have; the default is one half
_EXPANSION = {"C3": 3, "C2f": 3, "C3k2": 2}


class Size(NamedTuple):
    """A size of a model: its letter, width multiple, and largest number of channels before the width multiple."""

    letter: str
    width: float
    most_channels: float


def check_fit(graph: Graph, block: str, options: Mapping[str, Any], letter: str = "") -> list[str]:
    """Build the block, without memory, for the channels of every place that it has.

    Args:
        graph: the model.
        block: name of the block.
        options: its options.
        letter: the size, of those in a YAML of ultralytics; empty for all.

    Returns:
        The letters of the sizes in which the block cannot be built.

    Raises:
        ConfigError: it cannot be built in any size. The message names the row with the fewest channels and gives the
            block's own error.
    """
    # Not at the top: torch need not be imported for a model without a block.
    from yolov5_ema.blocks.registry import block_of

    if not block_of(block):
        return []
    sizes = [size for size in sizes_of(graph) if letter in ("", size.letter)]
    misfits = {size.letter: _misfit(graph, block_of(block), options, size) for size in sizes}
    if all(misfits.values()):
        raise ConfigError(misfits[sizes[0].letter])
    return [size for size, misfit in misfits.items() if misfit]


def sizes_of(graph: Graph) -> list[Size]:
    """The sizes in a model YAML; one without a letter for YOLOv5's."""
    scales = graph.settings.get("scales") if graph.of_ultralytics else None
    if scales:
        return [Size(letter, width, most) for letter, (_, width, most) in scales.items()]
    return [Size("", graph.settings.get("width_multiple", 1.0), math.inf)]


def _misfit(graph: Graph, name: str, options: Mapping[str, Any], size: Size) -> str:
    """Why the block cannot be built in a size; an empty string if it can."""
    import torch

    from yolov5_ema.blocks.registry import create_block

    channels = channels_of(graph, size)
    places = {row: row_channels for row in graph.rows if (row_channels := _of_block(row, channels)) is not None}
    for row in sorted(places, key=lambda row: places[row]):
        try:
            with torch.device("meta"):
                create_block(name, places[row], **options)
        except ValueError as error:
            before = [other for other in graph.rows[: graph.rows.index(row)] if not other.attends]
            place = f"inside row {len(before)}" if row.inside else f"after row {len(before) - 1}"
            at = f"at size {size.letter}" if size.letter else "at this size"
            return (
                f"{name} does not fit {place} of {graph.name}, {at}: {error}. "
                "Options apply to all places: --option NAME=VALUE, such as groups=16"
            )
    return ""


def _of_block(row: Row, channels: Mapping[Row | None, int | None]) -> int | None:
    """The channels of the block that is the row or is inside it; None without one, or if they are unknown."""
    outgoing = channels[row]
    if not row.inside or outgoing is None:
        return outgoing if row.attends else None
    host = row.module.removesuffix(f"_{row.inside}")
    expansion = [value for value in row.args if not isinstance(value, dict)][_EXPANSION[host] :][:1]
    return int(outgoing * (expansion[0] if expansion else 0.5))


def channels_of(graph: Graph, size: Size) -> dict[Row | None, int | None]:
    """Output channels of each row after the engine has scaled them; None if they do not follow from the YAML alone."""
    found: dict[Row | None, int | None] = {None: graph.settings.get("ch", 3)}
    for row in graph.rows:
        incoming = [found[source.row] for source in row.sources]
        found[row] = _outgoing(row, incoming, size)
    return found


def _outgoing(row: Row, incoming: list[int | None], size: Size) -> int | None:
    name, args = name_of(row.module), row.args
    if name == "Concat":
        return None if None in incoming else sum(filter(None, incoming))
    if row.attends or name in _PASSES_ON:
        return incoming[0]
    if name == "CBFuse":
        return incoming[-1]
    if name in ("HGBlock", "HGStem", "ResNetLayer") and all(type(value) is int for value in args[:2]) and args[1:]:
        return args[1] * 4 if name == "ResNetLayer" and args[3:4] != [True] else args[1]
    is_scaled = not name.startswith("nn.") and args and type(args[0]) is int
    return math.ceil(min(args[0], size.most_channels) * size.width / 8) * 8 if is_scaled else None
