"""Finds and checks the rows of attention blocks in a model YAML of the package ``ultralytics``.

The rows have the form of YOLOv5's rows, but the keys around them differ (``scales`` instead of the multiples, no
anchors). Rows of ultralytics' own modules are not changed; only their module names are checked.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import nn

from yolov5_ema.blocks.registry import block_called, block_of
from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.keys import SECTIONS
from yolov5_ema.cfgs.rows import (
    BlockRow,
    block_options,
    check_activation,
    host_row,
    nominal_output,
    plain_host,
    resolve_module,
)
from yolov5_ema.cfgs.values import is_int
from yolov5_ema.errors import ConfigError

# modules whose first argument is not their number of output channels
_OTHER_FIRST_ARGUMENT = ("AIFI", "CBFuse", "HGBlock", "HGStem", "ResNetLayer")


def block_rows(cfg: Mapping[str, Any], tasks: ModuleType, *, where: str, conflicts: str) -> list[BlockRow]:
    """The rows of a model dict that are attention blocks, or have one inside their module.

    Args:
        cfg: the content of a model YAML of ultralytics.
        tasks: ``ultralytics.nn.tasks``; the rows may use its names.
        where: file name for messages.
        conflicts: the meaning of a name that both ultralytics and this package have: ``error``, ``ours``, ``theirs``.

    Raises:
        ConfigError: an unknown module, an option that a block does not have, or an invalid row. The message names the
            file and the row, and says what to do.
    """
    rows = {section: cfg[section] for section in SECTIONS if section in cfg}
    # the other keys are ultralytics' own business
    graph = Graph.from_cfg({"nc": 1, **rows}, where, of_ultralytics=True)
    check_activation(cfg, where)
    names = _names(tasks)
    nominal: dict[Row, int | None] = {}
    found = []
    for index, row in enumerate(graph.rows):
        place = f"{where}, {row.section} row {index}"
        incoming = [None if source.row is None else nominal[source.row] for source in row.sources]
        inside = host_row(row, names, place, conflicts, index)
        if inside:
            found.append(inside)
            resolve_module(inside.host, names, place, conflicts)
            nominal[row] = nominal_output(nn.Module, plain_host(row, inside), incoming)
            continue
        module = resolve_module(row.module, names, place, conflicts)
        if block_of(module):
            found.append(BlockRow(index, module, block_options(module, row, place, incoming[0]), place))
            nominal[row] = incoming[0]
            continue
        _refuse_options_of_ours(row, place)
        if module.__name__ in _OTHER_FIRST_ARGUMENT:
            nominal[row] = None
        else:
            nominal[row] = nominal_output(module, row, incoming)
    return found


def _refuse_options_of_ours(row: Row, place: str) -> None:
    """Raise a `ConfigError` for a row such as ``[-1, 1, PSA, []]``, which reads like a row of a block.

    ultralytics has a PSA of its own, whose first argument is a number of channels. Other projects give this name to a
    block that has another name here.
    """
    called = block_called(row.module)
    if called and not any(is_int(argument) for argument in row.args[:1]):
        raise ConfigError(
            f"{place}: {row.module} is a module of ultralytics, which needs a number of channels as its first "
            f"argument. The block of yolov5-ema that other projects call {row.module} is called {called} here"
        )


def _names(tasks: ModuleType) -> ModuleType:
    """The names that a row's module may have: those that ultralytics looks up, but only classes of modules."""
    names = ModuleType(tasks.__name__)
    # a copy: another thread may change the module while it builds a model
    for name, value in list(vars(tasks).items()):
        if isinstance(value, type) and issubclass(value, nn.Module):
            setattr(names, name, value)
    operators = importlib.import_module("torchvision.ops")
    names.__dict__.update(nn=nn, torchvision=SimpleNamespace(ops=operators))
    return names
