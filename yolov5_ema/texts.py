"""Parts of many messages: lists of names, commands to type, "did you mean", first lines of errors, tables."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Iterable, Sequence

from yolov5_ema.settings import read


def listed(names: Iterable[object], most: int | None = None) -> str:
    """Names joined by commas.

    Args:
        names: any number of names.
        most: how many are written out; the others are only counted. None: all are written out.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    words = [str(name) for name in names]
    shown = ", ".join(words[:most])
    left = len(words) - len(words[:most])
    return f"{shown} and {left} more" if left else shown


def counted(number: int, what: str) -> str:
    """A number of things whose plural ends in s.

    Example:
        >>> counted(1, "image"), counted(1234, "image"), counted(2, "box")
        ('1 image', '1,234 images', '2 boxes')
    """
    ending = "es" if what.endswith(("s", "x")) else "s"
    return f"{number:,} {what}{'' if number == 1 else ending}"


def agreeing(number: int, one: str = "is", many: str = "are") -> str:
    """The form of a verb for a number of things.

    Example:
        >>> agreeing(1), agreeing(2), agreeing(0, "has", "have")
        ('is', 'are', 'have')
    """
    return one if number == 1 else many


def suggested(command: str, *words: object, rest: str = "") -> str:
    """A command of this program that the user may type next, quoted for a shell.

    It has the ``--plugin`` flags of the command that suggests it; timm's layers are found without one.

    Args:
        command: such as ``train`` or ``data stats``.
        words: its arguments, with the user's own names.
        rest: the end, for the user to fill in; it is not quoted.

    Example:
        >>> suggested("train", "--cfg", "my cfg.yaml", "--weights", "", rest="…")
        "yolov5-ema train --cfg 'my cfg.yaml' --weights '' …"
    """
    plugins = [word for name in read("plugins") if name != "timm" for word in ("--plugin", name)]
    return " ".join(["yolov5-ema", command, *(shlex.quote(str(word)) for word in (*plugins, *words)), rest]).rstrip()


def first_of(lines: Sequence[str], most: int, more: str = "and {} more") -> list[str]:
    """The first lines of a list; the others are only counted, in a last line.

    Example:
        >>> first_of(["a", "b", "c"], most=1)
        ['a', 'and 2 more']
    """
    return [*lines[:most], more.format(len(lines) - most)] if len(lines) > most else list(lines)


def nearest(name: object, known: Iterable[str], most: int = 1, *, likeness: float = 0.6) -> list[str]:
    """The known names that are most similar to a mistyped one, the nearest first; case does not matter.

    Args:
        name: what was typed.
        known: what it could have been.
        most: the maximum number of names returned.
        likeness: the minimum similarity, from 0 (nothing in common) to 1 (equal).

    Example:
        >>> nearest("trian", ["train", "val"]), nearest("x", ["train", "val"])
        (['train'], [])
    """
    folded = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=most, cutoff=likeness)
    return [folded[word] for word in near]


def did_you_mean(names: Sequence[str], otherwise: str = ".") -> str:
    """The end of a sentence about an unknown name.

    Args:
        names: the suggestions, see `nearest`.
        otherwise: the end of the sentence if there are no suggestions.

    Example:
        >>> did_you_mean(["train"]), did_you_mean([])
        ('; did you mean train?', '.')
    """
    return f"; did you mean {' or '.join(names)}?" if names else otherwise


def first_line(error: object, most: int = 500) -> str:
    """The first line of an error's message, at most ``most`` characters; the name of its class if it has no message.

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
        left: the left-aligned columns; all others are right-aligned.

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
