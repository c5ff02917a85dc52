"""Tables of the page, as the template writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NOTHING = "-"
"""Shown for a value that is not known."""


class Cell(NamedTuple):
    """One cell: its text, a number for sorting (None sorts last), a CSS class, and a share for its shade (0 to 1)."""

    text: str
    value: float | None = None
    kind: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table. The first cell of each row is its heading.

    Attributes:
        caption: describes the table in a sentence or less.
        columns: the headings of the columns.
        rows: the rows, with one cell for each column.
        is_sortable: whether a click on a heading sorts the table.
        kind: the CSS class.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = False
    kind: str = ""


def text(value: Any, kind: str = "") -> Cell:
    """A cell with text."""
    return Cell(str(value), None, kind)


def number(value: Any, pattern: str = "{:.4f}", kind: str = "") -> Cell:
    """A cell with a number; `NOTHING` for None and NaN."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return Cell(NOTHING, None, kind)
    return Cell(pattern.format(value), value, kind)


def printed(as_it_stands: str, kind: str = "") -> Cell:
    """A cell with a number, as printed in a file."""
    value = float(as_it_stands)
    return Cell(as_it_stands, value if math.isfinite(value) else None, kind)


def count(value: int | None) -> Cell:
    return number(value, "{:,.0f}")
