"""Refuses positional numbers of a block that public code would read in another way.

The public EMA is ``EMA(channels, c2=None, factor=32)``, ultralytics' CBAM is ``CBAM(c1, kernel_size=7)``, and rows of
YOLOv5 forks begin with one or two numbers of channels. A number that could mean two things is refused. The message
shows how to write each meaning with named options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

_Init = TypeVar("_Init", bound=Callable[..., None])
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KERNEL = "kernel_size"
_CHANNELS = "the number of channels"
_FROM_THE_ROW = ". The number of channels is not written: a block takes it from the row that it reads"


class Named(int):
    """An integer that was given by name or is a default: its meaning is clear even if it is passed on by position."""

    def __deepcopy__(self, memo: object) -> Named:
        # a block recognizes its default in a copied row
        return self


class Reading(NamedTuple):
    """One possible meaning of the numbers, and the named options that express it."""

    meaning: str
    options: dict[str, Any]


class UnclearNumbersError(ValueError):
    """The positional numbers of a block could mean more than one thing, or do not fit its options.

    Args:
        block: name of the block.
        values: the positional values after the channels.
        found: their possible meanings.
        channels: the channels that a Python call passed before them.
    """

    def __init__(self, block: str, values: Sequence[Any], found: list[Reading], channels: Any = None) -> None:
        self.block, self.values, self.found, self.channels = block, list(values), found, channels
        given = ", ".join(map(repr, [channels, *values]))
        super().__init__(self._said(f"{block}({given})", self._call))

    def in_row(self) -> str:
        """The message for a row of a YAML instead of a Python call."""
        said = self._said(f"{self.block} {self.values}", self._row)
        return said + (_FROM_THE_ROW if any(_CHANNELS in reading.meaning for reading in self.found) else "")

    def _said(self, given: str, spelled: Callable[[dict[str, Any]], str]) -> str:
        ways = [f"if {meaning}, write {spelled(options)}" for meaning, options in self.found]
        what = "can be read in more than one way" if len(ways) > 1 else "is not how options are given"
        return f"{given} {what}: {'; '.join(ways)}"

    def _call(self, options: dict[str, Any]) -> str:
        named = [f"{key}={value!r}" for key, value in options.items()]
        return f"{self.block}({', '.join([repr(self.channels), *named])})"

    def _row(self, options: dict[str, Any]) -> str:
        said = ", ".join(f"{key}: {_in_yaml(value)}" for key, value in options.items())
        return f"[{self.block}, [{{{said}}}]]" if options else f"[{self.block}, []]"


def named_numbers(init: _Init) -> _Init:
    """Decorator for a block's ``__init__`` that refuses positional numbers that could mean two things.

    >>> from yolov5_ema.blocks import CBAM
    >>> CBAM(64, 16).reduction, CBAM(64, kernel_size=7).kernel_size
    (16, 7)
    >>> CBAM(64, 7)
    Traceback (most recent call last):
    ...
    yolov5_ema.blocks.positions.UnclearNumbersError: CBAM(64, 7) can be read in more than one way: \
if kernel_size is 7, write CBAM(64, kernel_size=7); if reduction is 7, write CBAM(64, reduction=7)
    """
    # without self and channels
    options = _positional(init)[2:]
    block = init.__qualname__.split(".")[-2]

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **named: Any) -> None:
        if len(args) > 1:
            found = readings(options, args[1:], {args[0]} if _is_number(args[0]) else set())
            if found:
                raise UnclearNumbersError(block, args[1:], found, args[0])
        init(self, *args, **named)

    wrapper.refuses_unclear_numbers = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def refuses_unclear_numbers(block: type) -> bool:
    """Whether a block's constructor checks positional numbers itself; it does not check those of type `Named`."""
    return getattr(block.__init__, "refuses_unclear_numbers", False)  # type: ignore[misc]


def options_of(block: type) -> list[inspect.Parameter]:
    """The options that a block's constructor takes by position after the channels."""
    return _positional(block)[1:]


def _positional(function: Any) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if one.kind in _BY_POSITION]


def readings(options: Sequence[inspect.Parameter], values: Sequence[Any], channels: Collection[int]) -> list[Reading]:
    """The possible meanings of positional values; empty if their order is the only possible reading.

    Args:
        options: the block's options, see `options_of`.
        values: the positional values after the channels.
        channels: the numbers of channels that the block may have, such as the one in a YAML before the width multiple.
    """
    if not values:
        return []
    own = _in_order(options, values)
    lead = _leading_channels(options, values, channels, own is not None)
    if lead:
        return [*_after_channels(options, values, lead), *_as_own(own)]
    if len(values) == 1 and _may_be_kernel(options, values[0]):
        return [Reading(_described({_KERNEL: values[0]}), {_KERNEL: values[0]}), *_as_own(own)]
    return []


def readings_in_foreign_rows(
    options: Sequence[inspect.Parameter], values: Sequence[Any], channels: Collection[int]
) -> list[Reading]:
    """As `readings`, for a row of other code: a first value that can be the number of channels is nothing else."""
    found = readings(options, values, channels)
    as_channels = [reading for reading in found if _CHANNELS in reading.meaning]
    return as_channels if values and values[0] in channels else found


def _leading_channels(
    options: Sequence[inspect.Parameter], values: Sequence[Any], channels: Collection[int], fits: bool
) -> int:
    """How many of the first values are, or may be, numbers of channels."""
    first, *others = values
    # as in a call of the public EMA: EMA(64, None, 8)
    is_left_out = first is None and not fits
    if not _is_number(first) and not is_left_out:
        return 0
    lead = 2 if others and _is_number(first) and others[0] == first and _is_number(others[0]) else 1
    if first in channels or is_left_out:
        return lead
    is_readable = not fits and _assigned(options, values[lead:]) is not None
    return lead if is_readable else 0


def _after_channels(options: Sequence[inspect.Parameter], values: Sequence[Any], lead: int) -> list[Reading]:
    """The possible meanings of the values after the number of channels, as public code reads them."""
    rest = values[lead:]
    first = f"{values[0]} is {_CHANNELS}" if values[0] is not None else f"{_CHANNELS} is left out"
    if not rest:
        return [Reading(first, {})]
    assigned = _assigned(options, rest)
    if assigned is None or not _divides(assigned.get("groups", 1), values[0]):
        return [Reading(f"{first} (no option takes {list(rest)})", {})]
    found = [assigned]
    if len(rest) == 1 and _may_be_kernel(options, rest[0]):
        found.insert(0, {_KERNEL: rest[0]})
    return [Reading(f"{first} and {_described(said)}", said) for said in found]


def _divides(groups: Any, channels: Any) -> bool:
    # a user's own block may take a string, for example
    if not _is_number(groups) or not _is_number(channels):
        return True
    return bool(groups > 0 and channels % groups == 0)


def _as_own(own: dict[str, Any] | None) -> list[Reading]:
    return [Reading(_described(own), own)] if own else []


def _described(options: dict[str, Any]) -> str:
    return " and ".join(f"{name} is {value}" for name, value in options.items())


def _in_order(options: Sequence[inspect.Parameter], values: Sequence[Any]) -> dict[str, Any] | None:
    """The values as options in their order; None if there are too many or their types do not fit."""
    if len(values) > len(options) or not all(map(_fits, options, values)):
        return None
    return {option.name: value for option, value in zip(options, values)}


def _assigned(options: Sequence[inspect.Parameter], values: Sequence[Any]) -> dict[str, Any] | None:
    """The values, each as the next option that it fits; None if one fits no option."""
    found: dict[str, Any] = {}
    left = iter(options)
    for value in values:
        option = next((option for option in left if _fits(option, value)), None)
        if option is None:
            return None
        found[option.name] = value
    return found


def _fits(option: inspect.Parameter, value: Any) -> bool:
    default = option.default
    if isinstance(default, (bool, str)):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if value is None or not isinstance(value, int) or isinstance(value, bool):
        return value is None and default is None
    return option.name != _KERNEL or value % 2 == 1


def _is_number(value: Any) -> bool:
    # neither bool nor Named
    return type(value) is int


def _may_be_kernel(options: Sequence[inspect.Parameter], value: Any) -> bool:
    """Whether a number in the place of another option could be the block's odd kernel size."""
    is_behind = _KERNEL in [option.name for option in options[1:]]
    return is_behind and _is_number(value) and value > 0 and value % 2 == 1


def _in_yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
