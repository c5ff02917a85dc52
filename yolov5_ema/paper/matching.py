"""Which way of counting gives a printed figure: by its own digits, never by nearness."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import NamedTuple

ROUNDED, CUT_OFF, TWO_DIGITS = "rounded", "cut off", "to two digits"


class Match(NamedTuple):
    """The convention that gives a figure, its exact value, and how the digits were made of it."""

    convention: str
    value: float
    how: str


def explain(printed: str, values: Mapping[str, float]) -> Match | None:
    """The first convention that gives a printed figure; rounding is tried with all of them first, cutting off last.

    Args:
        printed: as it stands, such as "23.71"; its decimals are the precision.
        values: convention to value, in the figure's unit.

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
    if how == TWO_DIGITS:  # as 300 and 310 are, of 301.15 and 306.67
        step = Decimal(1).scaleb(figure.adjusted() - 1)
        whole = "." not in printed and figure % step == 0
        return whole and Decimal(value).quantize(step, ROUND_HALF_UP) == figure
    rounding = ROUND_HALF_UP if how == ROUNDED else ROUND_DOWN
    return Decimal(value).quantize(figure, rounding) == figure
