"""Finding the way of counting that gives a printed number: its digits must match exactly, not approximately."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import NamedTuple

ROUNDED, CUT_OFF, TWO_DIGITS = "rounded", "cut off", "to two digits"


class Match(NamedTuple):
    """The convention that gives a printed number, its exact value, and how the digits were derived from it."""

    convention: str
    value: float
    how: str


def explain(printed: str, values: Mapping[str, float]) -> Match | None:
    """Return the first convention that gives a printed number; rounding is tried first for all, cutting off last.

    Args:
        printed: the printed text, such as "23.71"; its decimals give the precision.
        values: the value of each convention, in the unit of the printed number.

    >>> explain("23.71", {"plain": 23.735460, "no-norm": 23.652132})
    >>> explain("23.84", {"plain": 23.903620, "no-norm": 23.849556})
    Match(convention='no-norm', value=23.849556, how='cut off')
    """
    for how in (ROUNDED, TWO_DIGITS, CUT_OFF):
        for convention, value in values.items():
            if _prints(value, printed, how):
                return Match(convention, value, how)
    return None


def _prints(value: float, printed: str, how: str) -> bool:
    figure = Decimal(printed)
    if how == TWO_DIGITS:  # such as 300 for 301.15 and 310 for 306.67
        step = Decimal(1).scaleb(figure.adjusted() - 1)
        whole = "." not in printed and figure % step == 0
        return whole and Decimal(value).quantize(step, ROUND_HALF_UP) == figure
    rounding = ROUND_HALF_UP if how == ROUNDED else ROUND_DOWN
    return Decimal(value).quantize(figure, rounding) == figure
