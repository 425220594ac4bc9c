"""Do pairs of words that stand in one relation form parallelograms? Baek et al., equation 3, and a test that can fail.

    loss = ||E_i + E_n - E_j - E_m|| / sigma      for two pairs i -> j and m -> n; sigma: root mean squared norm over
    the vocabulary

The raw loss falls when the embedding collapses, whatever the pairs are. So the strict test divides it by a control: the
same words, paired at random. The ratio is 1 for words without structure, in any embedding, and 0 for perfect
parallelograms. Words that merely lie near their partner (synonyms) lower that ratio too, without any common direction;
`offset_cosine`, the mean cosine of the offsets of two pairs, is 0 for those.

Both are judged without the first principal component. In a dot-product head that component can be little else than how
frequent a token is; base and derived words then lie parallel along it (so do a country and its capital), which no
random pairing shares: the ratio fell to 0.81 in a model whose other components gave 0.97 (docs/results/reading.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.evaluation.measures.bootstrap import percentile_interval, resample_weights
from harmonic_gpt.evaluation.measures.geometry import Spectrum
from harmonic_gpt.evaluation.tasks.word_pairs import TokenPairs, draw_quadruples, trivial

PAPER_QUADRUPLES = 10_000
PAPER_COMPONENTS = 2
MAX_PAIRS = 300  # of a task; more are thinned out by the seed
MIN_PAIRS = 8  # with fewer, an interval means nothing
SHUFFLES = 10
# Below this (in sigmas) the words of a task lie on one point, and no ratio says anything
POINT = 1e-5


@dataclass(frozen=True)
class ParallelogramTest:
    """One task in one space. `row` goes to results.json; the arrays draw the figure and compare models."""

    row: dict
    losses: np.ndarray  # (Q,) in sigmas
    ratios: np.ndarray  # (resamples,) bootstrap replicates; empty where there is no ratio
    cosines: np.ndarray


def parallelogram_losses(points: Tensor, ids: np.ndarray, quadruples: np.ndarray, sigma: float) -> np.ndarray:
    """(Q,) float64: equation 3 for pairs `ids` (P, 2), which index the rows of `points` (V, D), and quadruples (Q, 2)
    of pairs."""
    offsets = points[ids[:, 0]].double() - points[ids[:, 1]].double()  # (P, D)
    return ((offsets[quadruples[:, 0]] - offsets[quadruples[:, 1]]).norm(dim=1) / sigma).numpy()


def paper_test(points: Tensor, principal: Spectrum, pairs: TokenPairs, seed: int = 0) -> ParallelogramTest:
    """The published protocol: centered, two principal components, 10,000 quadruples; trivial ones stay in, and are
    counted.

    Ours beside it: the same quadruples of the same words paired at random, `shuffled_loss`.

    Args:
        points: (V, D), indexed by pairs.ids. principal: components of the whole vocabulary (or its stand-in).
    """
    if len(pairs.ids) < 2 or principal.collapsed:
        return _nothing("paper", PAPER_COMPONENTS, pairs, principal)
    quadruples = draw_quadruples(len(pairs.ids), PAPER_QUADRUPLES, seed)
    used = np.unique(pairs.ids)
    plane = torch.zeros(len(points), min(PAPER_COMPONENTS, len(principal.variances)), dtype=torch.float64)
    plane[used] = principal.coordinates(points[used], PAPER_COMPONENTS)
    losses = parallelogram_losses(plane, pairs.ids, quadruples, principal.scale(PAPER_COMPONENTS))
    order = np.random.default_rng(seed).permutation(len(pairs.ids))
    shuffled = np.stack([pairs.ids[:, 0], pairs.ids[order, 1]], 1)
    row = {
        "protocol": "paper",
        "components": PAPER_COMPONENTS,
        "seed": seed,
        **pairs.coverage,
        "quadruples": len(losses),
        "trivial_quadruples": int(trivial(pairs.ids, quadruples).sum()),
        "loss": float(losses.mean()),
        "median_loss": float(np.median(losses)),
        "shuffled_loss": float(
            parallelogram_losses(plane, shuffled, quadruples, principal.scale(PAPER_COMPONENTS)).mean()
        ),
    }
    none = np.empty(0)
    return ParallelogramTest(row, losses, none, none)


def strict_test(
    points: Tensor, principal: Spectrum, pairs: TokenPairs, components: int | str | None = None, seed: int = 0
) -> ParallelogramTest:
    """All quadruples of four different tokens, against the same words paired at random.

    ratio = mean loss / mean loss of SHUFFLES random pairings; both with a bootstrap over pairs (not quadruples, which
    share pairs).

    Args:
        components: principal components to look at, or geometry.WITHOUT_FIRST; None: the full space.
    """
    rng = np.random.default_rng(seed)
    ids = (
        pairs.ids
        if len(pairs.ids) <= MAX_PAIRS
        else pairs.ids[np.sort(rng.choice(len(pairs.ids), MAX_PAIRS, replace=False))]
    )
    n = len(ids)
    if n < MIN_PAIRS or principal.collapsed_in(components):
        return _nothing("strict", components, pairs, principal)
    sigma = principal.scale(components)
    a, b = (principal.coordinates(points[ids[:, side]], components) for side in (0, 1))  # (P, k)
    weights = resample_weights(n, seed)  # (R, P)

    losses, valid = _loss_matrix(a - b, ids, sigma)
    true_mean, true = _weighted_mean(losses, valid, np.ones((1, n)))[0], _weighted_mean(losses, valid, weights)
    control_sum, control_count = np.zeros(len(weights) + 1), np.zeros(len(weights) + 1)
    for _ in range(SHUFFLES):
        order = rng.permutation(n)
        shuffled, shuffled_valid = _loss_matrix(a - b[order], np.stack([ids[:, 0], ids[order, 1]], 1), sigma)
        # A pair of the shuffle occurs in a resample as often as both of its words do; the last row: the sample itself
        joint = np.vstack([weights * weights[:, order], np.ones(n)])
        control_sum += ((joint @ (shuffled * shuffled_valid)) * joint).sum(1)
        control_count += ((joint @ shuffled_valid) * joint).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        control = control_sum / control_count
        ratios = true / control[:-1]
    cosines, cosine_mean = _cosines(a - b, valid, weights)
    on_a_point = not (control[-1] > POINT and np.isfinite(ratios).all())
    row = {
        "protocol": "strict",
        "components": components or "all",
        "seed": seed,
        **pairs.coverage,
        "used": n,
        "quadruples": int(valid.sum()) // 2,
        "excluded_quadruples": n * (n - 1) // 2 - int(valid.sum()) // 2,
        "shuffles": SHUFFLES,
        "loss": float(true_mean),
        "median_loss": float(np.median(losses[np.triu(valid, 1) > 0])) if valid.any() else None,
        "control": float(control[-1]) if np.isfinite(control[-1]) else None,
        "ratio": None if on_a_point else float(true_mean / control[-1]),
        "ratio_interval": None if on_a_point else percentile_interval(ratios),
        "offset_cosine": cosine_mean,
        "offset_cosine_interval": percentile_interval(cosines),
        "flag": "the words lie on one point" if on_a_point else None,
    }
    return ParallelogramTest(row, losses[np.triu(valid, 1) > 0], np.empty(0) if on_a_point else ratios, cosines)


def _nothing(protocol: str, components: int | str | None, pairs: TokenPairs, principal: Spectrum) -> ParallelogramTest:
    reason = "the embedding is collapsed" if principal.collapsed_in(components) else "too few pairs"
    none = np.empty(0)
    row = {
        "protocol": protocol,
        "components": components or "all",
        **pairs.coverage,
        "loss": None,
        "ratio": None,
        "flag": reason,
    }
    return ParallelogramTest(row, none, none, none)


def _loss_matrix(offsets: Tensor, ids: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses of all pairs of pairs (P, P), and which of them have four different tokens (P, P) float."""
    losses = torch.cdist(offsets, offsets).numpy() / sigma
    a, b = ids[:, 0], ids[:, 1]
    distinct = (
        (a[:, None] != a) & (b[:, None] != b) & (a[:, None] != b) & (b[:, None] != a) & ((a != b)[:, None] & (a != b))
    )
    return losses, distinct.astype(np.float64)


def _weighted_mean(values: np.ndarray, valid: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of values (P, P) over the valid pairs of a sample in which thing p occurs weights[r, p] times. (R,)"""
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((weights @ (values * valid)) * weights).sum(1) / ((weights @ valid) * weights).sum(1)


def _cosines(offsets: Tensor, valid: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Replicates (R,) and value of the mean cosine of two offsets; None where offsets are zero."""
    norms = offsets.norm(dim=1, keepdim=True)
    if (norms <= 0).any():
        return np.empty(0), None
    cosines = (offsets / norms @ (offsets / norms).T).numpy()
    value = _weighted_mean(cosines, valid, np.ones((1, len(valid))))[0]
    return _weighted_mean(cosines, valid, weights), float(value) if np.isfinite(value) else None
