"""Comparing models over seeds: means, spreads, and paired differences with their t intervals.

An interval here is over seeds: it says what another training would give with the same training data and the same test
images. It says nothing about other images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

BETTER = "better"
WORSE = "worse"
NO_DIFFERENCE = "no difference shown"
NO_INTERVAL = "one seed: no interval"


@dataclass(frozen=True)
class Summary:
    """The results of one model over seeds.

    Attributes:
        n: number of values.
        mean: mean of the values.
        sd: standard deviation of the values (n - 1 in the denominator); None for one value.
        smallest: the smallest value.
        largest: the largest value.
        low: lower end of the t interval of the mean; None for one value.
        high: upper end of the t interval of the mean; None for one value.
    """

    n: int
    mean: float
    sd: float | None
    smallest: float
    largest: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline, seed by seed.

    Attributes:
        n: number of pairs.
        mean: mean difference.
        sd: standard deviation of the differences; None for one pair.
        low: lower end of the t interval; None for one pair.
        high: upper end of the t interval; None for one pair.
        confidence: confidence of the interval, such as 0.95.
        p: uncorrected p value of the two-sided paired t test; None if it is undefined.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    confidence: float
    p: float | None

    @property
    def verdict(self) -> str:
        """`BETTER` or `WORSE` if the interval excludes 0 (higher is better), else `NO_DIFFERENCE` or `NO_INTERVAL`.

        If the differences do not vary at all, there is no t interval: the seeds had no effect, or there are too few
        seeds to show one. The verdict is then `NO_DIFFERENCE`.
        """
        if self.sd is None or self.low is None or self.high is None:
            return NO_INTERVAL
        if self.sd == 0 or self.low <= 0 <= self.high:
            return NO_DIFFERENCE
        return BETTER if self.low > 0 else WORSE


def summarize(values: Iterable[float], confidence: float = 0.95) -> Summary:
    """Compute the mean, the spread and the t interval of a model's results.

    Raises:
        ValueError: there are no values, a value is not finite, or the confidence is outside (0, 1).
    """
    figures = _checked(values)
    sd, low, high = _spread(figures, confidence)
    return Summary(
        n=len(figures),
        mean=float(figures.mean()),
        sd=sd,
        smallest=float(figures.min()),
        largest=float(figures.max()),
        low=low,
        high=high,
    )


def paired_difference(
    candidate: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95, pilot: int | None = None
) -> Difference | None:
    """Compute candidate minus baseline over the seeds that both have; None if there is no such seed.

    Args:
        candidate: results by seed.
        baseline: results by seed.
        confidence: confidence of the interval.
        pilot: if the number of seeds was chosen by `power.seeds_for_width` after the seeds below this number: the
            width of the interval and the p value then follow from the spread of those seeds alone.

    Raises:
        ValueError: a value is not finite, or the confidence is outside (0, 1).

    Example:
        >>> found = paired_difference({0: 0.52, 1: 0.55, 2: 0.53}, {0: 0.50, 1: 0.52, 2: 0.52})
        >>> round(found.mean, 3), round(found.low, 4), round(found.high, 4), found.verdict
        (0.02, -0.0048, 0.0448, 'no difference shown')
    """
    seeds = sorted(candidate.keys() & baseline.keys())
    if not seeds:
        return None
    before = _checked(baseline[seed] for seed in seeds)
    differences = _checked(candidate[seed] for seed in seeds) - before
    if np.ptp(differences) <= 4 * np.spacing(np.abs(before).max()):  # equal except for rounding
        differences = np.full(len(seeds), differences.mean())
    mean = float(differences.mean())
    first = differences if pilot is None else differences[: sum(seed < pilot for seed in seeds)]
    sd, low, high = _spread(differences, confidence, first)
    return Difference(
        n=len(seeds),
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        confidence=confidence,
        p=_p_value(mean, float(first.std(ddof=1)), len(seeds), len(first)) if sd and low is not None else None,
    )


def bonferroni_confidence(confidence: float, comparisons: int) -> float:
    """The confidence that each of several intervals needs so that all of them hold together with ``confidence``.

    Example:
        >>> round(bonferroni_confidence(0.95, 5), 6)
        0.99
    """
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1, not {comparisons}")
    return 1 - (1 - confidence) / comparisons


def _checked(values: Iterable[float]) -> np.ndarray:
    figures = np.array(list(values), dtype=float)
    if figures.size == 0:
        raise ValueError("no figures")
    if not np.isfinite(figures).all():
        raise ValueError(f"figures must be finite, not {figures.tolist()}")
    return figures


def _p_value(mean: float, sd: float, n: int, pilot: int) -> float | None:
    """The p value of the two-sided paired t test, with ``sd`` from ``pilot`` pairs; None if they do not vary."""
    from scipy import stats

    return float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), pilot - 1)) if sd else None


def _spread(
    figures: np.ndarray, confidence: float, first: np.ndarray | None = None
) -> tuple[float | None, float | None, float | None]:
    """The standard deviation, and the ends of the t interval of the mean, whose width follows from ``first``.

    None for one value.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    n = len(figures)
    if n < 2:
        return None, None, None
    from scipy import stats

    sd, mean = float(figures.std(ddof=1)), float(figures.mean())
    first = figures if first is None else first
    if len(first) < 2:
        return sd, None, None
    half = float(stats.t.ppf((1 + confidence) / 2, len(first) - 1) * first.std(ddof=1) / math.sqrt(n))
    return sd, mean - half, mean + half
