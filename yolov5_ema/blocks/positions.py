"""Numbers that a block is given by position, where public code reads them in another way.

The public EMA is ``EMA(channels, c2=None, factor=32)``, ultralytics' CBAM is ``CBAM(c1, kernel_size=7)``, and rows of
YOLOv5 forks begin with one or two numbers of channels. A number that could mean two things is refused, with each
meaning spelled out by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Sequence
from typing import Any, Callable, NamedTuple, TypeVar

_Init = TypeVar("_Init", bound=Callable[..., None])
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KERNEL = "kernel_size"
_CHANNELS = "the number of channels"
_FROM_THE_ROW = ". The number of channels is not written: a block takes it from the row that it reads"


class Named(int):
    """An integer that was given by name, or is a default: it means one thing, wherever it is passed on."""


class Reading(NamedTuple):
    """One thing that the numbers could mean, and the options that say it."""

    meaning: str
    options: dict[str, Any]


class UnclearNumbersError(ValueError):
    """The numbers given to a block could mean more than one thing, or are not how its options are given.

    Args:
        block: name of the block.
        values: what was given by position behind the channels.
        found: what that could mean.
        channels: the number that stands before them where Python code called the block.
    """

    def __init__(self, block: str, values: Sequence[Any], found: list[Reading], channels: Any = None) -> None:
        self.block, self.values, self.found, self.channels = block, list(values), found, channels
        given = ", ".join(map(repr, [channels, *values]))
        super().__init__(self._said(f"{block}({given})", self._call))

    def in_row(self) -> str:
        """The same for a row of a YAML."""
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
    """Decorator of a block's ``__init__``: it refuses numbers by position that could mean two things.

    >>> from yolov5_ema.blocks import CBAM
    >>> CBAM(64, 16).reduction, CBAM(64, kernel_size=7).kernel_size
    (16, 7)
    >>> CBAM(64, 7)
    Traceback (most recent call last):
    ...
    yolov5_ema.blocks.positions.UnclearNumbersError: CBAM(64, 7) can be read in more than one way: \
if kernel_size is 7, write CBAM(64, kernel_size=7); if reduction is 7, write CBAM(64, reduction=7)
    """
    options = _positional(init)[2:]  # behind self and channels
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
    """Whether a block's constructor looks at numbers by position itself; it passes over those of the kind `Named`."""
    return getattr(block.__init__, "refuses_unclear_numbers", False)  # type: ignore[misc]


def options_of(block: type) -> list[inspect.Parameter]:
    """The options that a block's constructor takes by position, behind the channels."""
    return _positional(block)[1:]


def _positional(function: Any) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if one.kind in _BY_POSITION]


def readings(
    options: Sequence[inspect.Parameter], values: Sequence[Any], channels: Collection[int]
) -> list[Reading]:
    """What values given by position could mean; empty if they mean what their order says, and nothing else.

    Args:
        options: those of the block, see `options_of`.
        values: what is given behind the channels.
        channels: what is known of the number of channels; also as a YAML writes it, before the width multiple.
    """
    if not values:
        return []
    own = _in_order(options, values)
    lead = _leading_channels(options, values, channels, own is not None)
    if lead:
        return [*_behind_channels(options, values, lead), *_as_own(own)]
    if len(values) == 1 and _may_be_kernel(options, values[0]):
        return [Reading(_told({_KERNEL: values[0]}), {_KERNEL: values[0]}), *_as_own(own)]
    return []


def _leading_channels(
    options: Sequence[inspect.Parameter], values: Sequence[Any], channels: Collection[int], fits: bool
) -> int:
    """How many of the first values are, or may be, numbers of channels."""
    first, *others = values
    is_left_out = first is None and not fits  # the public EMA(64, None, 8)
    if not _is_number(first) and not is_left_out:
        return 0
    lead = 2 if others and _is_number(first) and others[0] == first and _is_number(others[0]) else 1
    if first in channels or is_left_out:
        return lead
    is_readable = not fits and _assigned(options, values[lead:]) is not None
    return lead if is_readable else 0


def _behind_channels(options: Sequence[inspect.Parameter], values: Sequence[Any], lead: int) -> list[Reading]:
    """What follows the number of channels, as public code reads it."""
    rest = values[lead:]
    first = f"{values[0]} is {_CHANNELS}" if values[0] is not None else f"{_CHANNELS} is left out"
    if not rest:
        return [Reading(first, {})]
    assigned = _assigned(options, rest)
    if assigned is None or not _divides(assigned.get("groups", 1), values[0]):
        return [Reading(f"{first}, for there is no option that {list(rest)} could be", {})]
    found = [assigned]
    if len(rest) == 1 and _may_be_kernel(options, rest[0]):
        found.insert(0, {_KERNEL: rest[0]})
    return [Reading(f"{first} and {_told(said)}", said) for said in found]


def _divides(groups: Any, channels: Any) -> bool:
    if not _is_number(groups) or not _is_number(channels):  # a block of the user's may take a text, say
        return True
    return bool(groups > 0 and channels % groups == 0)


def _as_own(own: dict[str, Any] | None) -> list[Reading]:
    return [Reading(_told(own), own)] if own else []


def _told(options: dict[str, Any]) -> str:
    return " and ".join(f"{name} is {value}" for name, value in options.items())


def _in_order(options: Sequence[inspect.Parameter], values: Sequence[Any]) -> dict[str, Any] | None:
    """The values as options in their order; None if they are too many, or of other types."""
    if len(values) > len(options) or not all(map(_fits, options, values)):
        return None
    return {option.name: value for option, value in zip(options, values)}


def _assigned(options: Sequence[inspect.Parameter], values: Sequence[Any]) -> dict[str, Any] | None:
    """The values as the next options that could be meant; None if one of them fits none."""
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
    return type(value) is int  # no bool, and none that was named


def _may_be_kernel(options: Sequence[inspect.Parameter], value: Any) -> bool:
    """Whether a number that takes the place of another option could be the block's odd kernel."""
    is_behind = _KERNEL in [option.name for option in options[1:]]
    return is_behind and _is_number(value) and value > 0 and value % 2 == 1


def _in_yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
