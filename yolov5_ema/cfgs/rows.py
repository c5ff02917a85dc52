"""Checks a model YAML row by row, before YOLOv5 evaluates any part of it.

YOLOv5's `parse_model` calls ``eval`` on module names, on string arguments and on ``activation:``, so a YAML can run
code. Here every row is resolved without ``eval``. `parse_model` then gets classes instead of names, and plain literals
instead of expressions.
"""

from __future__ import annotations

import ast
import inspect
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from torch import nn

from yolov5_ema.blocks import registry
from yolov5_ema.blocks.inside import host_and_block, put_inside
from yolov5_ema.blocks.positions import (
    Named,
    UnclearNumbersError,
    options_of,
    readings,
    refuses_unclear_numbers,
)
from yolov5_ema.cfgs.graph import Graph, Row
from yolov5_ema.cfgs.keys import SECTIONS
from yolov5_ema.cfgs.values import is_int
from yolov5_ema.errors import ConfigError, UserError
from yolov5_ema.texts import did_you_mean, nearest
from yolov5_ema.upstream.patching import holding

WRAPPERS = frozenset({"AutoShape", "DetectMultiBackend"})
"""Wrappers that YOLOv5 puts around a model; they open or download files when they are built."""

# variables of parse_model that YOLOv5's YAMLs use as arguments
_OWN_NAMES = ("nc", "anchors")
_WORDS = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")
# characters of an argument
_LONGEST_TEXT = 1000
_NO_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
_NOTHING = object()
_COUNTS = ("ch", "nc")
_kept: ContextVar[dict[tuple[str, str, str], dict[str, list[Any]]] | None] = ContextVar("checked rows", default=None)
# evaluated in parse_model's frame: the row's actual input channels, after scaling
_INPUT_CHANNELS = "ch[f]"


def checked_model(
    cfg: Mapping[str, Any], yolo: ModuleType, *, where: str = "model dict", conflicts: str = "error"
) -> dict[str, Any]:
    """A copy of a model dict that is safe to pass to `parse_model`, with the classes of the blocks in its rows.

    Args:
        cfg: the content of a model YAML.
        yolo: YOLOv5's ``models.yolo``; the rows may use its names.
        where: file name for messages.
        conflicts: the meaning of a name that both YOLOv5 and this package have: ``error``, ``ours``, ``theirs``.

    Raises:
        ConfigError: a row is invalid; the message names the file and the row, and says what to do.
    """
    kept, asked = _kept.get(), (yolo.__name__, conflicts, _without_counts(cfg))
    if kept is None or asked not in kept:
        safe = _checked_rows(cfg, yolo, where, conflicts)
        if kept is None:
            return {**deepcopy(dict(cfg)), **safe}
        kept[asked] = safe
    return {**deepcopy(dict(cfg)), **deepcopy(kept[asked])}


@dataclass(frozen=True)
class BlockRow:
    """A row with an attention block.

    Attributes:
        index: its number over backbone and head.
        block: the class of the block.
        options: positional arguments that follow its channels.
        place: file and row, for messages.
        host: the module that has the block behind each of its bottlenecks; empty if the row is the block alone.
    """

    index: int
    block: type
    options: list[Any]
    place: str
    host: str = ""

    def build(self, channels: int) -> Any:
        """The block for a number of channels.

        Raises:
            ConfigError: it cannot be built with them.
        """
        try:
            return self.block(channels, *self.options)
        except UnclearNumbersError as error:
            raise ConfigError(f"{self.place}: {error.in_row()}") from error
        except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, RuntimeError) as error:
            hint = hint_of_channels(self.block) if self.options and not self.host else ""
            raise ConfigError(f"{self.place}: [{_name_of(self.block)}, {self.options}]: {error}{hint}") from error


def host_row(row: Row, names: ModuleType, place: str, conflicts: str, index: int) -> BlockRow | None:
    """The block inside the module of a row such as ``C3_EMA``; None for other rows.

    Raises:
        ConfigError: an option that the block does not have, or the engine has a module of this name too.
    """
    host, block = host_and_block(row.module)
    if not block:
        return None
    if not row.module.startswith(registry.PREFIX) and _lookup(names, row.module) is not None and conflicts != "ours":
        if conflicts == "theirs":
            return None
        raise ConfigError(
            f"{place}: {row.module} is a module of this YOLO, and also {host} with {block} inside. Write "
            f"{registry.PREFIX}{row.module} for the latter, or choose for all rows with --conflicts ours|theirs."
        )
    cls = _our_block(block, place)
    options = [argument for argument in row.args[-1:] if isinstance(argument, dict)]
    return BlockRow(index, cls, block_options(cls, replace(row, args=options, several=False), place, None), place, host)


def plain_host(row: Row, inside: BlockRow) -> Row:
    """The row without its block: ``C3_EMA`` as ``C3``."""
    args = row.args[:-1] if row.args and isinstance(row.args[-1], dict) else row.args
    return replace(row, module=inside.host, args=args)


def rows_with_inner_blocks(cfg: Mapping[str, Any], yolo: ModuleType, *, where: str, conflicts: str) -> list[BlockRow]:
    """The rows such as ``C3_EMA`` of a model dict that `checked_model` accepts."""
    rows = Graph.from_cfg(cfg, where).rows
    found = (host_row(row, yolo, f"{where}, {row.section} row {i}", conflicts, i) for i, row in enumerate(rows))
    return [row for row in found if row]


def put_blocks_inside(layers: nn.Sequential, rows: Sequence[BlockRow]) -> None:
    """Put the blocks of rows such as ``C3_EMA`` into the layers that the engine has built for their hosts.

    Raises:
        ConfigError: a layer has no bottlenecks, or the block cannot have their channels.
    """
    for row in rows:
        layer: Any = layers[row.index]
        try:
            put_inside(layer, row.build)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{row.place}: {error}") from error
        layer.np = sum(parameter.numel() for parameter in layer.parameters())


def checking_once() -> AbstractContextManager[None]:
    """Context manager: `checked_model` checks the same rows only once, though preflight and `parse_model` both ask."""
    return holding(_kept, {})


def _without_counts(cfg: Mapping[str, Any]) -> str:
    """The content of a model dict without the keys that YOLOv5 itself sets when it knows the data set."""
    return repr(sorted((str(key), value) for key, value in cfg.items() if key not in _COUNTS))


def _checked_rows(cfg: Mapping[str, Any], yolo: ModuleType, where: str, conflicts: str) -> dict[str, list[Any]]:
    graph = Graph.from_cfg(cfg, where)
    check_activation(cfg, where)
    nominal: dict[Row, int | None] = {}
    safe: dict[str, list[Any]] = {section: [] for section in SECTIONS}
    raw_rows = [raw for section in SECTIONS for raw in cfg[section]]
    for index, (row, raw) in enumerate(zip(graph.rows, raw_rows)):
        place = f"{where}, {row.section} row {index}"
        inside = host_row(row, yolo, place, conflicts, index)
        if inside:
            row = plain_host(row, inside)
        module = resolve_module(row.module, yolo, place, conflicts)
        incoming = [None if source.row is None else nominal[source.row] for source in row.sources]
        if registry.block_of(module):
            options = block_options(module, row, place, incoming[0])
            args = [_INPUT_CHANNELS, *(_quoted(value, place) for value in options)]
            nominal[graph.rows[index]] = incoming[0]
        else:
            args = [_checked_argument(argument, place) for argument in row.args]
            nominal[graph.rows[index]] = nominal_output(module, row, incoming)
        safe[row.section].append([deepcopy(raw[0]), row.number, module, args])
    return safe


def check_activation(cfg: Mapping[str, Any], where: str) -> None:
    """Raise a `ConfigError` if ``activation:`` is not a torch.nn module with literal arguments."""
    activation = cfg.get("activation")
    if activation is None:
        return
    if not isinstance(activation, str) or not is_layer_of_literals(activation):
        raise ConfigError(
            f"{where}: activation must read like nn.SiLU() or nn.LeakyReLU(0.1), not {reprlib.repr(activation)}"
        )


def is_layer_of_literals(text: str) -> bool:
    """Whether a text is a single call ``nn.Name(…)`` or ``torch.nn.Name(…)`` with literals as arguments."""
    if len(text) > _LONGEST_TEXT:
        return False
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return False
        if ast.unparse(call.func.value) not in ("nn", "torch.nn"):
            return False
        for node in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(node)
    except _NO_LITERAL:
        return False
    return _is_module_class(getattr(nn, call.func.attr, None))


def resolve_module(name: Any, yolo: ModuleType, place: str, conflicts: str) -> type:
    """The class of a row's module: one of the names in ``yolo``, or a registered block."""
    if _is_module_class(name):
        return name
    if not isinstance(name, str):
        raise ConfigError(f"{place}: the module must be a name such as Conv, or a torch.nn.Module class, not {name!r}")
    if name.startswith(registry.PREFIX):
        return _our_block(name[len(registry.PREFIX) :], place)
    theirs = _lookup(yolo, name)
    is_ours = registry.block_of(name) == name
    if is_ours and theirs is not None and theirs is not registry.get_block(name) and conflicts == "error":
        raise ConfigError(
            f"{place}: {name} is both a module of this YOLO ({theirs.__module__}) and a block of yolov5-ema. Write "
            f"{registry.PREFIX}{name} for the latter, or choose for all rows with --conflicts ours|theirs "
            f"(install(conflicts=...) in Python)."
        )
    if is_ours and (theirs is None or conflicts == "ours"):
        return _our_block(name, place)
    if theirs is not None:
        return theirs
    known = registry.list_blocks() + sorted(key for key, value in vars(yolo).items() if _is_module_class(value))
    raise ConfigError(f"{place}: unknown module {name!r}{_nearest(name, known)}")


def _our_block(name: str, place: str) -> type:
    if registry.block_of(name) != name:
        raise ConfigError(f"{place}: yolov5-ema has no block {name!r}{_nearest(name, registry.list_blocks())}")
    try:
        return registry.get_block(name)
    except UserError as error:
        raise ConfigError(f"{place}: {error}") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    if registry.why_no_block(name):
        return f". It is not a block: {registry.why_no_block(name)}."
    if "." in name:
        known = [*known, *registry.list_blocks(on_demand=True)]
    called = registry.block_called(name)
    hint = f"; here it is called {called}." if called else did_you_mean(nearest(name, known, likeness=0.5))
    blocks = ", ".join(registry.list_blocks())
    return f"{hint} Attention blocks: {blocks}; a block of your own needs --plugin its_module (in Python: import it)"


def _lookup(yolo: ModuleType, dotted: str) -> type | None:
    """The layer that has a name in YOLOv5's ``models.yolo``; None if there is none, or a row must not build it."""
    found: Any = yolo
    for part in dotted.split("."):
        if part.startswith("_"):
            return None
        try:
            found = getattr(found, part, None)
        except Exception:
            # a module that imports others on demand can raise anything
            return None
    return found if _is_module_class(found) and _is_for_rows(found) else None


def _is_for_rows(cls: type) -> bool:
    """Whether a row may build a class: not a wrapper that opens or downloads files, and of torch only layers."""
    home = cls.__module__
    return cls.__name__ not in WRAPPERS and (home.startswith("torch.nn.modules.") or not home.startswith("torch."))


def _is_module_class(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _checked_argument(argument: Any, place: str) -> Any:
    """An argument that `parse_model` may evaluate: a literal, or one of its own few names."""
    if isinstance(argument, list):
        return [_checked_argument(item, place) for item in argument]
    if not isinstance(argument, str):
        return argument
    if argument in _OWN_NAMES or argument in _WORDS:
        return argument if argument in _OWN_NAMES else repr(argument)
    literal = _literal(argument)
    if literal is _NOTHING:
        raise ConfigError(
            f"{place}: the argument {reprlib.repr(argument)} is neither a literal nor one of the names that YOLOv5's "
            f"own YAMLs use ({', '.join(_OWN_NAMES)}, None, 'nearest'); code in a cfg is not run"
        )
    # parse_model evaluates a string once more
    return repr(literal) if isinstance(literal, str) else literal


def _literal(text: str) -> Any:
    """The value of a Python literal; `_NOTHING` if the text is not a literal."""
    if len(text) > _LONGEST_TEXT:
        return _NOTHING
    try:
        return ast.literal_eval(text)
    except _NO_LITERAL:
        return _NOTHING


def block_options(block: type, row: Row, place: str, incoming: int | None) -> list[Any]:
    """The row's options, checked, as positional arguments that follow the input channels.

    Numbers that the row gives by name, and defaults, become `Named`, because their meaning is clear.

    Raises:
        ConfigError: an option that the block does not have or that is given twice, or a number that could mean two
            things.
    """
    if row.several:
        raise ConfigError(f"{place}: {_name_of(block)} reads one row, not several; put a Concat before it")
    positional, keywords = list(row.args), {}
    if positional and isinstance(positional[-1], dict):
        keywords = positional.pop()
    _refuse_unclear(block, positional, place, incoming)
    parameters = options_of(block)
    if len(positional) > len(parameters):
        raise ConfigError(f"{place}: {_name_of(block)} takes {_describe(parameters)}, not {len(positional)} arguments")
    values = {p.name: value for p, value in zip(parameters, positional)}
    for key, value in keywords.items():
        if key not in {p.name for p in parameters}:
            raise ConfigError(f"{place}: {_name_of(block)} has no option {key!r}; it takes {_describe(parameters)}")
        if key in values:
            raise ConfigError(f"{place}: {_name_of(block)} gets {key!r} twice")
        values[key] = _named(block, value)
    given = [p for p in parameters if p.name in values]
    needed = parameters[: parameters.index(given[-1]) + 1] if given else []
    return [values[p.name] if p.name in values else _named(block, p.default) for p in needed]


def _named(block: type, value: Any) -> Any:
    return Named(value) if type(value) is int and refuses_unclear_numbers(block) else value


def _refuse_unclear(block: type, positional: list[Any], place: str, incoming: int | None) -> None:
    found = readings(options_of(block), positional, set() if incoming is None else {incoming})
    if found:
        raise ConfigError(f"{place}: {UnclearNumbersError(_name_of(block), positional, found).in_row()}")


def hint_of_channels(block: type) -> str:
    """A hint for a block with arguments: tutorials pass the channels there, which this plugin does not need."""
    return f". (The channels are taken from the row that the block reads: [{_name_of(block)}, []] is enough.)"


def _name_of(block: type) -> str:
    """The name that a block has in rows."""
    return registry.block_of(block) or block.__name__


def with_options_by_name(cfg: Any, layers: Sequence[Any] = ()) -> None:
    """Name the positional options in the rows of a checkpoint's own YAML, in place.

    Nobody can edit that YAML, and when it was written, positional options had only one meaning: that of their order.

    Args:
        cfg: the YAML in the checkpoint; it may be anything.
        layers: the layer of each row. Without them, rows of blocks are found by name.
    """
    sections: list[Any] = [cfg.get(section) for section in SECTIONS] if isinstance(cfg, dict) else []
    if not sections or not all(isinstance(section, list) for section in sections):
        return
    for index, row in enumerate(row for section in sections for row in section):
        if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
            continue
        block = _class_of(layers[index]) if index < len(layers) else _known_block(row[2])
        if registry.block_of(block):
            row[3] = _by_name(block, row[3])


def _class_of(layer: Any) -> type:
    """The class of a row's layer, or of the layer that the row repeats."""
    return type(layer[0] if type(layer) is nn.Sequential and len(layer) else layer)


def _known_block(name: Any) -> type:
    known = registry.block_of(name) if isinstance(name, str) else ""
    return registry.get_block(known) if known else type(None)


def _by_name(block: type, args: list[Any]) -> list[Any]:
    positional = [value for value in args if not isinstance(value, dict)]
    names = [option.name for option in options_of(block)]
    if not any(type(value) is int for value in positional) or len(positional) > len(names):
        return args
    return [{**dict(zip(names, positional)), **(args[-1] if isinstance(args[-1], dict) else {})}]


def _describe(parameters: Sequence[inspect.Parameter]) -> str:
    return ", ".join(f"{p.name}={p.default!r}" for p in parameters) or "no options"


def _quoted(value: Any, place: str) -> Any:
    return repr(value) if isinstance(value, str) else _checked_argument(value, place)


def nominal_output(module: type, row: Row, incoming: list[int | None]) -> int | None:
    """Output channels before the width multiple, as YAMLs write them; None if they are unknown."""
    if module.__name__ == "Concat":
        return sum(incoming) if None not in incoming else None  # type: ignore[arg-type]
    if row.args and is_int(row.args[0]) and module.__module__.split(".")[0] != "torch":
        return row.args[0]
    return incoming[0]
