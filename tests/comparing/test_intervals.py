"""Means, spreads and paired intervals over seeds, compared with closed forms, tables and scipy's own tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from yolov5_ema.comparing.intervals import (
    BETTER,
    NO_DIFFERENCE,
    NO_INTERVAL,
    WORSE,
    bonferroni_confidence,
    paired_difference,
    summarize,
)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_summary_of_three_figures_by_hand():
    # 0.50, 0.52, 0.57: mean 0.53, squares 9 + 1 + 16 = 26e-4, sd = sqrt(13e-4); t(0.975, 2) = 4.302653
    found = summarize([0.50, 0.52, 0.57])
    sd = math.sqrt(13e-4)
    half = 4.302653 * sd / math.sqrt(3)
    assert (found.n, found.smallest, found.largest) == (3, 0.50, 0.57)
    assert found.mean == pytest.approx(0.53)
    assert found.sd == pytest.approx(sd)
    assert found.low == pytest.approx(0.53 - half, abs=1e-7)
    assert found.high == pytest.approx(0.53 + half, abs=1e-7)


@pytest.mark.parametrize(
    "confidence, quantile",  # tables of Student's t, two degrees of freedom
    [(0.90, 2.919986), (0.95, 4.302653), (0.98, 6.964557), (0.99, 9.924843)],
)
def test_interval_of_differences_uses_students_quantile(confidence, quantile):
    found = paired_difference(by_seed(2.0, 4.0, 6.0), by_seed(1.0, 2.0, 3.0), confidence)  # 1, 2, 3
    half = quantile / math.sqrt(3)
    assert found.mean == pytest.approx(2) and found.sd == pytest.approx(1)
    assert found.low == pytest.approx(2 - half, abs=1e-5)
    assert found.high == pytest.approx(2 + half, abs=1e-5)


def test_two_seeds_have_the_cauchy_quantile():
    found = paired_difference(by_seed(1.0, 3.0), by_seed(0.0, 0.0))
    half = math.tan(math.pi * 0.475)  # t with one degree of freedom; sd / sqrt(2) = 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_agrees_with_scipys_paired_test(n):
    rng = np.random.default_rng(n)
    candidate, baseline = rng.normal(0.5, 0.02, n), rng.normal(0.49, 0.02, n)
    found = paired_difference(by_seed(*candidate), by_seed(*baseline), 0.9)
    theirs = stats.ttest_rel(candidate, baseline)
    differences = candidate - baseline
    low, high = stats.t.interval(0.9, n - 1, differences.mean(), stats.sem(differences))
    assert (found.low, found.high, found.p) == pytest.approx((low, high, theirs.pvalue))


def test_pairs_are_made_by_seed_not_by_place():
    found = paired_difference({2: 0.7, 0: 0.5, 9: 0.1}, {0: 0.4, 1: 0.0, 2: 0.6})
    assert found.n == 2 and found.mean == pytest.approx(0.1)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None
    assert paired_difference({}, {1: 0.5}) is None


def test_pairing_shows_what_the_spread_over_seeds_hides():
    baseline = by_seed(0.40, 0.50, 0.60, 0.70)
    candidate = by_seed(0.411, 0.509, 0.611, 0.709)
    assert paired_difference(candidate, baseline).verdict == BETTER
    apart = stats.ttest_ind(list(candidate.values()), list(baseline.values()))
    assert apart.pvalue > 0.9


@pytest.mark.parametrize(
    "differences, verdict",
    [
        ((0.010, 0.011, 0.012), BETTER),
        ((-0.010, -0.011, -0.012), WORSE),
        ((0.010, 0.011, -0.012), NO_DIFFERENCE),
        # all are above 0, and yet the interval contains 0: 0.02 - 4.30 * 0.01 / sqrt(3) < 0
        ((0.01, 0.02, 0.03), NO_DIFFERENCE),
        ((0.01,), NO_INTERVAL),
        ((0.0, 0.0, 0.0), NO_DIFFERENCE),
        ((0.01, 0.01, 0.01), NO_DIFFERENCE),  # seeds without an effect show no spread
    ],
)
def test_verdicts(differences, verdict):
    baseline = by_seed(*(0.5 + 0.03 * seed for seed in range(len(differences))))
    candidate = {seed: baseline[seed] + change for seed, change in enumerate(differences)}
    assert paired_difference(candidate, baseline).verdict == verdict


def test_the_verdict_turns_where_the_interval_leaves_zero():
    half = stats.t.ppf(0.975, 1)  # differences 1 above and 1 below their mean
    inside = paired_difference(by_seed(half + 0.99, half - 1.01), by_seed(0.0, 0.0))
    outside = paired_difference(by_seed(half + 1.01, half - 0.99), by_seed(0.0, 0.0))
    assert (inside.low, outside.low) == pytest.approx((-0.01, 0.01))
    assert (inside.verdict, outside.verdict) == (NO_DIFFERENCE, BETTER)


def test_one_figure_has_no_spread():
    found = summarize([0.5])
    assert (found.n, found.mean, found.sd, found.low, found.high) == (1, 0.5, None, None, None)
    difference = paired_difference({3: 0.5}, {3: 0.25})
    assert (difference.mean, difference.sd, difference.low, difference.p) == (0.25, None, None, None)


def test_bonferroni():
    assert bonferroni_confidence(0.95, 1) == pytest.approx(0.95)
    assert bonferroni_confidence(0.95, 5) == pytest.approx(0.99)
    wide = paired_difference(by_seed(1.0, 2.0, 3.5), by_seed(0, 0, 0), bonferroni_confidence(0.95, 5))
    narrow = paired_difference(by_seed(1.0, 2.0, 3.5), by_seed(0, 0, 0), 0.95)
    ratio = (wide.high - wide.mean) / (narrow.high - narrow.mean)
    assert ratio == pytest.approx(9.924843 / 4.302653, rel=1e-6)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        bonferroni_confidence(0.95, 0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: summarize([]), "no figures"),
        (lambda: summarize([0.5, math.nan]), "finite"),
        (lambda: summarize([0.5, 0.6], 1.0), "between 0 and 1"),
        (lambda: paired_difference({0: math.inf, 1: 0.5}, {0: 0.5, 1: 0.5}), "finite"),
        (lambda: paired_difference({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.4}, 95), "not 95"),
    ],
)
def test_what_is_no_figure_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_intervals_hold_as_often_as_they_say():
    """With 3 seeds and a true difference of 0.01, 95 % of the intervals contain it; without one, 2.5 % say "better"."""
    rng = np.random.default_rng(0)
    draws = 2000
    held = better = 0
    for _ in range(draws):
        baseline, noise = rng.normal(0.5, 0.05, 3), rng.normal(0, 0.01, 3)
        found = paired_difference(by_seed(*(baseline + 0.01 + noise)), by_seed(*baseline))
        held += found.low <= 0.01 <= found.high
        better += paired_difference(by_seed(*(baseline + noise)), by_seed(*baseline)).verdict == BETTER
    assert held / draws == pytest.approx(0.95, abs=0.015)
    assert better / draws == pytest.approx(0.025, abs=0.01)
