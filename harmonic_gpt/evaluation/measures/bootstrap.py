"""How sure a number is: bootstrap over the things that were sampled (pairs, tokens, queries), and spread over seeds."""

from collections.abc import Sequence

import numpy as np

from harmonic_gpt.extras import require

RESAMPLES = 500
CONFIDENCE = 0.95
SEED = 0  # of the means
SEGMENT = 64  # positions in a row that a bootstrap sample takes or leaves together: they share their text


def resample_weights(n: int, seed: int) -> np.ndarray:
    """(RESAMPLES, n) float64: how often each of n things occurs in a bootstrap sample of n. A function of (n, seed)
    alone, so that two models that are measured on the same things are resampled alike, and their difference is a paired
    one."""
    return np.random.default_rng((seed, n)).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def bootstrap_means(values: np.ndarray) -> np.ndarray:
    """(RESAMPLES,) bootstrap replicates of the mean of `values` (n,)."""
    return resample_weights(len(values), SEED) @ np.asarray(values, np.float64) / len(values)


def segment_ratio(values: np.ndarray, weights: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """sum(values) / sum(weights) over the positions (N,) of a text, and its bootstrap replicates (RESAMPLES,) over
    segments of the text. With a mask for weights and values that are 0 outside: the mean inside."""
    starts = np.arange(0, len(values), SEGMENT)
    totals, counts = (np.add.reduceat(np.asarray(x, np.float64), starts) for x in (values, weights))
    drawn = resample_weights(len(starts), seed)
    with np.errstate(invalid="ignore"):  # a sample without any position inside is not finite, and has no interval
        return float(totals.sum() / counts.sum()), drawn @ totals / (drawn @ counts)


def percentile_interval(replicates: np.ndarray) -> list[float] | None:
    """Percentile interval (95 %) of bootstrap replicates; None if any is not finite."""
    if len(replicates) == 0 or not np.isfinite(replicates).all():
        return None
    tail = 50 * (1 - CONFIDENCE)
    return [float(v) for v in np.percentile(replicates, [tail, 100 - tail])]


def spread(values: list[float]) -> dict:
    """Mean and standard deviation over runs; the deviation of one run is None: not known."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "runs": len(values),
        "values": [float(v) for v in values],
    }


def paired_interval(a: Sequence[float], b: Sequence[float]) -> list[float] | None:
    """95 % interval of mean(a) - mean(b) by the paired t; a[i] and b[i] are a pair, such as runs of one seed. None with
    a single pair; without width where all differences are equal up to rounding."""
    if len(a) != len(b):
        raise ValueError(f"expected pairs, got {len(a)} and {len(b)} values")
    if len(a) < 2:
        return None
    # The t statistic of equal differences is not defined, and what rounding leaves of their spread is no spread
    if np.ptp(np.subtract(a, b)) <= 1e-12 * np.abs([a, b]).max():
        return [float(np.mean(a) - np.mean(b))] * 2
    require("eval", "scipy")
    from scipy import stats

    low, high = stats.ttest_rel(a, b).confidence_interval(CONFIDENCE)
    return [float(low), float(high)]


def welch_interval(a: Sequence[float], b: Sequence[float]) -> list[float] | None:
    """95 % interval of mean(a) - mean(b) by Welch's t, a and b independent; None where one has a single value."""
    if min(len(a), len(b)) < 2:
        return None
    if np.ptp(a) == np.ptp(b) == 0:
        return [float(np.mean(a) - np.mean(b))] * 2
    require("eval", "scipy")
    from scipy import stats

    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    return [float(low), float(high)]


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of as uneven a split of wins and losses, if either were as likely. 1 without any."""
    require("eval", "scipy")
    from scipy import stats

    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
