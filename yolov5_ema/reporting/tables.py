"""Tables of the page, as the template writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NOTHING = "-"
"""In the place of what is not known."""


class Cell(NamedTuple):
    """One cell: its text, the number to sort it by (None sorts last), a class for its looks, a share to shade it by."""

    text: str
    value: float | None = None
    kind: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table. The first cell of each row is its heading.

    Attributes:
        caption: what is in it, in a sentence or less.
        columns: their headings.
        rows: as many cells each as there are columns.
        is_sortable: by a click on a heading.
        kind: class for its looks.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = False
    kind: str = ""


def text(value: Any, kind: str = "") -> Cell:
    """A cell of words."""
    return Cell(str(value), None, kind)


def number(value: Any, pattern: str = "{:.4f}", kind: str = "") -> Cell:
    """A cell of a number; `NOTHING` for None and for what is no number."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return Cell(NOTHING, None, kind)
    return Cell(pattern.format(value), value, kind)


def printed(as_it_stands: str, kind: str = "") -> Cell:
    """A number as somebody else printed it."""
    value = float(as_it_stands)
    return Cell(as_it_stands, value if math.isfinite(value) else None, kind)


def count(value: int | None) -> Cell:
    return number(value, "{:,.0f}")
