"""Words that many messages share: lists of names, "did you mean", the first line of an error, tables for a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


def listed(names: Iterable[object], most: int | None = None) -> str:
    """Names joined by commas.

    Args:
        names: any number.
        most: how many are written out; of the others only the number is said. None: all are.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    words = [str(name) for name in names]
    shown = ", ".join(words[:most])
    left = len(words) - len(words[:most])
    return f"{shown} and {left} more" if left else shown


def nearest(name: object, known: Iterable[str], most: int = 1, *, likeness: float = 0.6) -> list[str]:
    """The known names that a mistyped one may have meant, the nearest first; capitals do not matter.

    Args:
        name: what was typed.
        known: what it could have been.
        most: how many are given.
        likeness: how like a name must be, from 0 (not at all) to 1 (the same).

    Example:
        >>> nearest("trian", ["train", "val"]), nearest("x", ["train", "val"])
        (['train'], [])
    """
    folded = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=most, cutoff=likeness)
    return [folded[word] for word in near]


def did_you_mean(names: Sequence[str], otherwise: str = ".") -> str:
    """The end of a sentence about a name that is not known.

    Args:
        names: what may have been meant, see `nearest`.
        otherwise: the end of the sentence if that is nothing.

    Example:
        >>> did_you_mean(["train"]), did_you_mean([])
        ('; did you mean train?', '.')
    """
    return f"; did you mean {' or '.join(names)}?" if names else otherwise


def first_line(error: object, most: int = 500) -> str:
    """What an error says first, in at most so many characters; the name of its class if it says nothing.

    Example:
        >>> first_line(ValueError("bad shape\\nat row 3")), first_line(MemoryError())
        ('bad shape', 'MemoryError')
    """
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:most]


def aligned(table: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A table for a terminal: columns of one width, two spaces apart.

    Args:
        table: rows, all of one length; the first may be the heads of the columns.
        left: the columns that begin at the left; all others end at the right.

    Example:
        >>> print(aligned([["class", "AP"], ["car", "71.3"]]))
        class    AP
        car    71.3
    """
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = (
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in table
    )
    return "\n".join(lines)
