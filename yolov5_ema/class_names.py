"""Class names from a checkpoint, an exported model or a data YAML. None of these can be trusted."""

from __future__ import annotations

import os
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Union

from yolov5_ema.errors import UserError

Names = Union["list[str]", "dict[int, str]"]

_LONGEST = 1000
_MOST = 100_000
_NOT_IN_FOLDERS = r'[/\\:*?"<>|]' if os.name == "nt" else r"[/\\]"
_NOT_PRINTED = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of control characters, surrogates and line separators."""


def fault_of_names(names: Any, count: int | None = None) -> str | None:
    """What is wrong with class names; None if nothing is.

    Args:
        names: a list or tuple of strings, or a dict from class number to string. A number is accepted as a name too:
            YAML reads digits without quotes as a number.
        count: how many classes the model has; each must have a name. None: not known.

    Example:
        >>> fault_of_names(["car", "N/A", 7]), fault_of_names({0: "car"}, count=2)
        (None, 'class 1 of 2 has no name')
        >>> fault_of_names(["../../car"])
        "the class name '../../car' would lead out of the folder of crops that detect makes; give it another name"
    """
    if isinstance(names, Mapping):
        odd = [key for key in names if type(key) is not int or key < 0]
        if odd:
            return f"names must be numbered by whole numbers, not by {reprlib.repr(odd[0])}"
        listed = list(names.values())
    elif isinstance(names, (list, tuple)):
        listed = list(names)
    else:
        return f"names must be a list of class names, not {reprlib.repr(names)}"
    if len(listed) > _MOST:
        return f"{len(listed):,} names of classes"
    return next(filter(None, map(_fault_of_one, listed)), None) or _missing(names, count)


def names_as_text(names: Any) -> Names:
    """Names that `fault_of_names` accepts, with numbers turned into strings."""
    if isinstance(names, Mapping):
        return {key: str(name) for key, name in names.items()}
    return [str(name) for name in names]


def as_folder_name(name: str) -> str:
    """A class name made safe to use as the name of a folder.

    Example:
        >>> as_folder_name("car/van"), as_folder_name("..")
        ('car_van', '_')
    """
    safe = "".join("_" if unicodedata.category(char) in _NOT_PRINTED else char for char in name)
    safe = re.sub(_NOT_IN_FOLDERS, "_", safe)
    # most file systems allow 255 bytes
    while len(safe.encode("utf-8")) > 200:
        safe = safe[:-1]
    return safe if safe.strip(". ") else "_"


def _missing(names: Any, count: int | None) -> str | None:
    has = names.__contains__ if isinstance(names, Mapping) else lambda index: index < len(names)
    missing = [index for index in range(count or 0) if not has(index)]
    return f"class {missing[0]} of {count} has no name" if missing else None


def _fault_of_one(name: Any) -> str | None:
    if isinstance(name, (int, float)):
        return None
    if type(name) is not str:
        return f"{reprlib.repr(name)} in names is not a class name: it must be text"
    if len(name) > _LONGEST or any(unicodedata.category(char) in _NOT_PRINTED for char in name):
        return (
            f"{reprlib.repr(name)} in names is not a class name: it must be text on one line, of at most "
            f"{_LONGEST} characters"
        )
    if any(".." in kind(name).parts or kind(name).root for kind in (PurePosixPath, PureWindowsPath)):
        return (
            f"the class name {reprlib.repr(name)} would lead out of the folder of crops that detect makes; "
            "give it another name"
        )
    return None


def class_numbers(wanted: Sequence[str | int], names: Sequence[str], file: Path) -> list[int]:
    """The class numbers that ``--classes`` asks for, in ascending order and without repeats.

    Args:
        wanted: class names, or class numbers as strings or integers.
        names: the model's class names.
        file: the model's file, for the message.

    Raises:
        UserError: the model does not know one of them.
    """
    numbers = []
    for one in wanted:
        if one in names:
            numbers.append(names.index(str(one)))
        elif str(one).isdecimal() and int(one) < len(names):
            numbers.append(int(one))
        else:
            more = ", …" if len(names) > 10 else ""
            raise UserError(
                f"--classes {one}: {file} knows the classes {', '.join(names[:10])}{more} (0 to {len(names) - 1})"
            )
    return sorted(set(numbers))
