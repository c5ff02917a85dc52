"""Checks that a block can be built at its places in a generated model YAML, before YOLOv5 builds the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.errors import ConfigError


def check_fit(graph: Graph, block: str, options: Mapping[str, Any]) -> None:
    """Build the block, without memory, for the channels of every row that it follows.

    Raises:
        ConfigError: the block cannot have the channels of one of the rows. The message names the row with the fewest
            channels and gives the block's own error.
    """
    # Not at the top: torch need not be imported for a model without a block.
    import torch

    from yolov5_ema.blocks.registry import block_of, create_block

    name = block_of(block)
    if not name:
        return
    channels = _channels(graph)
    attended = [row for row in graph.rows if row.attends and channels[row] is not None]
    for row in sorted(attended, key=lambda row: channels[row] or 0):
        try:
            with torch.device("meta"):
                create_block(name, channels[row] or 0, **options)
        except ValueError as error:
            before = [other for other in graph.rows[: graph.rows.index(row)] if not other.attends]
            raise ConfigError(
                f"{name} does not fit after row {len(before) - 1} of {graph.name}, at this size: {error}. "
                "Options apply to all places: --option NAME=VALUE, such as groups=16"
            ) from None


def _channels(graph: Graph) -> dict[Row | None, int | None]:
    """Output channels of each row after YOLOv5 has scaled them; None if they do not follow from the YAML alone."""
    width = graph.settings["width_multiple"]
    found: dict[Row | None, int | None] = {None: graph.settings.get("ch", 3)}
    for row in graph.rows:
        incoming = [found[source.row] for source in row.sources]
        found[row] = _outgoing(row, incoming, width)
    return found


def _outgoing(row: Row, incoming: list[int | None], width: float) -> int | None:
    if row.module == "Concat":
        return None if None in incoming else sum(filter(None, incoming))
    if row.attends or row.module in ("nn.Upsample", "nn.BatchNorm2d", "nn.MaxPool2d"):
        return incoming[0]
    is_scaled = not row.module.startswith("nn.") and row.args and type(row.args[0]) is int
    return math.ceil(row.args[0] * width / 8) * 8 if is_scaled else None
