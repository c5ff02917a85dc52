"""Check that the files of a run hold values of the types that a page needs.

A shape is a function that takes a value and a name for its place. It returns the value, or raises a `UserError`. A
`record` keeps only the keys that its shape names.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yolov5_ema.errors import UserError

Shape = Callable[[Any, str], Any]

_LARGEST = 1e15
_LONGEST = 2000


def number(low: float = -_LARGEST, high: float = _LARGEST, *, is_whole: bool = False) -> Shape:
    """A finite number in a range."""
    kinds, what = ((int,), "a whole number") if is_whole else ((int, float), "a number")

    def check(value: Any, where: str) -> Any:
        if type(value) not in kinds or not math.isfinite(value) or not low <= value <= high:
            raise UserError(f"{where} must be {what} from {low:g} to {high:g}, not {reprlib.repr(value)}")
        return value

    return check


def whole(low: float = 0, high: float = _LARGEST) -> Shape:
    """A whole number in a range."""
    return number(low, high, is_whole=True)


def words(value: Any, where: str) -> Any:
    """A text."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise UserError(f"{where} must be a text, not {reprlib.repr(value)}")
    return value


def scalar(value: Any, where: str) -> Any:
    """A text, a number, a boolean or None."""
    if isinstance(value, str):
        return words(value, where)
    if value is None or isinstance(value, bool):
        return value
    return number()(value, where)


def one_of(*choices: Any) -> Shape:
    """One of a few values."""

    def check(value: Any, where: str) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise UserError(f"{where} must be {' or '.join(map(str, choices))}, not {reprlib.repr(value)}")
        return value

    return check


def maybe(shape: Shape) -> Shape:
    """None, or a value of a shape."""
    return lambda value, where: None if value is None else shape(value, where)


def several(shape: Shape, most: int = 10_000, least: int = 0) -> Shape:
    """A list."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise UserError(f"{where} must be a list of {least} to {most:,} entries, not {reprlib.repr(value)}")
        return [shape(entry, f"{where}[{at}]") for at, entry in enumerate(value)]

    return check


def by_name(shape: Shape, most: int = 10_000) -> Shape:
    """A mapping with any names."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict) or len(value) > most:
            raise UserError(f"{where} must hold values by their names, not {reprlib.repr(value)}")
        return {words(key, f"a name in {where}"): shape(held, f"{where}, {key[:60]}") for key, held in value.items()}

    return check


def record(optional: Sequence[str] = (), **shapes: Shape) -> Shape:
    """A mapping with these names; those in ``optional`` may be missing."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise UserError(f"{where} must hold {', '.join(shapes)}, not {reprlib.repr(value)}")
        missing = [name for name in shapes if name not in value and name not in optional]
        if missing:
            raise UserError(f"{where}: missing: {', '.join(missing)}")
        return {name: shape(value[name], f"{where}, {name}") for name, shape in shapes.items() if name in value}

    return check


def checked(shape: Shape, content: Any, file: Path, what: str) -> Any:
    """The content of a file, after checking its shape.

    Raises:
        UserError: it does not have this shape. Names the file and the place in it.
    """
    try:
        return shape(content, file.name)
    except UserError as error:
        raise UserError(f"{file} is not valid as {what}: {error}") from None
