"""Intervals against formulas."""

import numpy as np
import pytest
from scipy import stats

from harmonic_gpt.evaluation.measures.bootstrap import (
    bootstrap_means,
    paired_interval,
    percentile_interval,
    sign_test,
    welch_interval,
)


def test_intervals():
    values = np.random.default_rng(0).normal(size=400)
    low, high = percentile_interval(bootstrap_means(values))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert sign_test(10, 0) == pytest.approx(2 / 1024)


def test_welch():
    assert welch_interval([1.0], [2.0, 3.0]) is None
    low, high = welch_interval([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert low < -1 < high < 0


def test_pairs_have_the_interval_of_the_paired_t_and_it_is_narrower_where_they_go_together():
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=6)  # what a seed does to both
    a, b = seeds + rng.normal(scale=0.05, size=(2, 6))
    low, high = paired_interval(list(a), list(b))
    # d +- t s / sqrt(n), t of 0.975 with 5 degrees of freedom
    half = 2.5705818 * np.std(a - b, ddof=1) / np.sqrt(6)
    assert (low, high) == pytest.approx((np.mean(a - b) - half, np.mean(a - b) + half))
    assert [low, high] == pytest.approx(list(stats.ttest_rel(a, b).confidence_interval(0.95)))
    wide = welch_interval(list(a), list(b))
    assert high - low < (wide[1] - wide[0]) / 4


def test_pairs_without_spread_are_a_number_and_a_single_pair_has_no_interval():
    assert paired_interval([], []) is paired_interval([1.0], [2.0]) is None
    assert paired_interval([3.0, 4.0], [1.5, 2.5]) == [1.5, 1.5]
    assert paired_interval([3.0, 4.0], [3.0, 4.0]) == [0.0, 0.0]
    low, high = paired_interval([0.3, 0.4, 0.7], [0.2, 0.3, 0.6])  # equal but for rounding
    assert low == high == pytest.approx(0.1)
    low, high = paired_interval([5.0, 5.1], [5.0, 5.1 + 1e-6])  # hardly any is not none
    assert low < -5e-7 < high
    with pytest.raises(ValueError, match="expected pairs, got 2 and 3 values"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
