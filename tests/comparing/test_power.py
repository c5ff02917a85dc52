"""How many seeds a comparison needs: against an independent computation, and by simulated comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from yolov5_ema.comparing.intervals import paired_difference
from yolov5_ema.comparing.power import power_of, seeds_for_effect, seeds_for_width, spread_of
from yolov5_ema.errors import UserError

EFFECT, SD = 0.004, 0.01


def test_spread_of_ten_pairs_by_tables():
    # chi-squared with nine degrees of freedom: 2.700389 and 19.022768
    found = spread_of(0.02, 10)
    assert found.low == pytest.approx(0.02 * math.sqrt(9 / 19.022768), rel=1e-6)
    assert found.high == pytest.approx(0.02 * math.sqrt(9 / 2.700389), rel=1e-6)
    with pytest.raises(ValueError, match="needs two pairs"):
        spread_of(0.02, 1)


@pytest.mark.parametrize(("seeds", "share"), [(5, 0.4), (10, 0.8), (20, 0.3)])
def test_power_is_the_share_of_tests_that_show_the_difference(seeds, share):
    effect = SD * {5: 0.95, 10: 1.0, 20: 0.33}[seeds]
    rng = np.random.default_rng(seeds)
    shown = stats.ttest_1samp(rng.normal(effect, SD, (40_000, seeds)), 0, axis=1).pvalue < 0.05
    assert power_of(seeds, effect, SD, 0.95) == pytest.approx(shown.mean(), abs=0.01) == pytest.approx(share, abs=0.05)


def test_published_sample_sizes():
    # Cohen's table for the paired t test, two-sided, alpha 0.05, power 0.8: d = 0.2, 0.5, 0.8
    assert [seeds_for_effect(d, 1.0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert seeds_for_effect(1.0, 1.0, confidence=0.99) == 16
    assert seeds_for_effect(0.01, 0.0) == 2
    with pytest.raises(UserError, match="too small: it needs more than 100,000"):
        seeds_for_effect(0.001, 1.0)


def covered(rng: np.random.Generator, pilot: int, width: float | None) -> bool:
    """Whether the interval of one simulated comparison holds the true difference; with a width, in two stages."""
    base = dict.fromkeys(range(1000), 0.5)
    model = {seed: 0.5 + value for seed, value in enumerate(rng.normal(EFFECT, SD, pilot))}
    if width is None:
        found = paired_difference(model, base)
    else:
        seeds = seeds_for_width(width, paired_difference(model, base).sd, pilot)
        model |= {seed: 0.5 + value for seed, value in zip(range(pilot, seeds), rng.normal(EFFECT, SD, seeds - pilot))}
        found = paired_difference(model, base, pilot=pilot)
        assert found.high - found.low <= width * (1 + 1e-9) and found.n == seeds
    return found.low <= EFFECT <= found.high


@pytest.mark.parametrize(("pilot", "width"), [(10, None), (4, 0.015), (8, 0.008)])
def test_intervals_hold_in_95_percent_of_2000_comparisons(pilot, width):
    rng = np.random.default_rng(11)
    assert np.mean([covered(rng, pilot, width) for _ in range(2000)]) == pytest.approx(0.95, abs=0.01)


def test_adding_seeds_until_the_usual_interval_is_narrow_does_not_hold():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        values = list(rng.normal(EFFECT, SD, 3))
        while stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)) > 0.0075:
            values.append(rng.normal(EFFECT, SD))
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        hits += abs(np.mean(values) - EFFECT) <= half
    assert hits / 1000 < 0.93


def test_the_first_stage_alone_sets_the_width_and_the_p_value():
    first, later = [0.01, 0.02, 0.03, 0.02], [0.09, 0.00]
    found = paired_difference(dict(enumerate(first + later)), dict.fromkeys(range(6), 0.0), pilot=4)
    sd = math.sqrt(2e-4 / 3)
    assert found.mean == pytest.approx(0.17 / 6) and found.n == 6
    assert found.high - found.mean == pytest.approx(3.182446 * sd / math.sqrt(6), rel=1e-6)
    assert found.p == pytest.approx(2 * stats.t.sf(0.17 / 6 / (sd / math.sqrt(6)), 3))
    assert found.sd == pytest.approx(np.std(first + later, ddof=1))
    alone = paired_difference({0: 0.5, 4: 0.6}, {0: 0.4, 4: 0.4}, pilot=4)
    assert (alone.low, alone.p) == (None, None)
