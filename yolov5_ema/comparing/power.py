"""How many seeds a comparison needs: to show a difference of a given size, or for an interval of a given width."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yolov5_ema.errors import UserError

_MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Spread:
    """The standard deviation of paired differences, estimated from some pairs.

    Attributes:
        sd: the estimate, with n - 1 in the denominator.
        low: lower end of its 95 % interval, if the differences are normally distributed.
        high: upper end of this interval.
        pairs: number of pairs.
    """

    sd: float
    low: float
    high: float
    pairs: int


def spread_of(sd: float, pairs: int) -> Spread:
    """The standard deviation ``sd`` of ``pairs`` differences with its 95 % interval.

    Raises:
        ValueError: there are fewer than two pairs.

    Example:
        >>> spread_of(0.01, 3)
        Spread(sd=0.01, low=0.0052..., high=0.0628..., pairs=3)
    """
    if pairs < 2:
        raise ValueError(f"a standard deviation needs two pairs, not {pairs}")
    from scipy import stats

    free = pairs - 1
    low, high = (sd * math.sqrt(free / float(stats.chi2.ppf(share, free))) for share in (0.975, 0.025))
    return Spread(sd, low, high, pairs)


def power_of(seeds: int, effect: float, sd: float, confidence: float) -> float:
    """The probability that a two-sided paired t test over ``seeds`` seeds shows a difference of ``effect``.

    Args:
        seeds: number of pairs, at least 2.
        effect: the true mean difference, not 0.
        sd: the true standard deviation of the differences, above 0.
        confidence: 1 minus the level of the test.
    """
    from scipy import stats

    free, shift = seeds - 1, abs(effect) / sd * math.sqrt(seeds)
    limit = float(stats.t.ppf((1 + confidence) / 2, free))
    # far out, scipy's noncentral t gives NaN for the side that has no weight
    other_side = float(stats.nct.cdf(-limit, free, shift)) if shift < 30 else 0.0
    return float(stats.nct.sf(limit, free, shift)) + other_side


def seeds_for_effect(effect: float, sd: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """The smallest number of seeds with which a difference of ``effect`` is shown with probability ``power``.

    Raises:
        UserError: it is above 100,000.

    Example:
        >>> seeds_for_effect(0.01, 0.01), seeds_for_effect(0.004, 0.01)
        (10, 52)
    """
    if sd == 0:
        return 2
    low, high = 1, 2
    while power_of(high, effect, sd, confidence) < power:
        low, high = high, high * 2
        if high > _MOST_SEEDS:
            raise UserError(f"a difference of {effect:g} is too small: it needs more than {_MOST_SEEDS:,} seeds")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, effect, sd, confidence) >= power else (middle, high)
    return high


def seeds_for_width(width: float, sd: float, pilot: int, confidence: float = 0.95) -> int:
    """The number of seeds for an interval of a given width, by the two-stage procedure of Stein (1945).

    The number depends only on the spread in the first stage, which says nothing about the mean. So the interval
    mean ± t * sd / sqrt(n), with the quantile t for ``pilot`` - 1 degrees of freedom and the first stage's ``sd``, has
    exactly the confidence that it claims, whatever n the procedure chooses.

    Args:
        width: the width of the interval, from its lower to its upper end.
        sd: the standard deviation of the differences in the first stage.
        pilot: the number of seeds of the first stage, which are part of the result.
        confidence: confidence of the interval.

    Example:
        >>> seeds_for_width(0.02, 0.01, pilot=5)
        8
    """
    from scipy import stats

    quantile = float(stats.t.ppf((1 + confidence) / 2, pilot - 1))
    return max(pilot, math.ceil((2 * quantile * sd / width) ** 2))
