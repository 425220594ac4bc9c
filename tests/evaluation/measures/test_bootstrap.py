"""Intervals against formulas."""

import numpy as np
import pytest

from harmonic_gpt.evaluation.measures.bootstrap import (
    bootstrap_means,
    difference_over_runs,
    percentile_interval,
    sign_test,
)


def test_intervals():
    values = np.random.default_rng(0).normal(size=400)
    low, high = percentile_interval(bootstrap_means(values))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert difference_over_runs([1.0], [2.0, 3.0]) is None
    low, high = difference_over_runs([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert low < -1 < high < 0
    assert sign_test(10, 0) == pytest.approx(2 / 1024)
