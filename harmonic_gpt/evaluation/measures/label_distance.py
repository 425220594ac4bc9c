"""Does a hidden state lie near the center of its label, as the harmonic loss asks? Standard heads are moved fairly.

A standard head fixes neither origin nor scale of its rows, so every head's centers are first moved by one shift (their
mean at the labels onto the states' mean) and by the common scale that serves the head best, chosen on other text.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.evaluation.measures.bootstrap import percentile_interval, segment_ratio
from harmonic_gpt.evaluation.measures.geometry import COLLAPSED

MAX_POSITIONS = 2048
REFERENCE_CENTERS = 2000  # stand for the vocabulary where its median distance is taken
SCALES = 2.0 ** np.arange(-5, 3.5, 0.5)  # times the scale at which centers spread as widely as states
ROWS = 256  # positions at a time


@dataclass(frozen=True)
class LabelDistance:
    row: dict
    headline: tuple[float, np.ndarray] | None = None  # label_over_shuffled and its bootstrap replicates


def label_distance(hidden_states: Tensor, labels: Tensor, centers: Tensor, seed: int = 0) -> LabelDistance:
    """Distance of a hidden state to its label's center over its distance to the center of another position's label.

    1: the state is no nearer to its own label than to any label. The control matters: frequent tokens' centers may lie
    nearer to everything. `label`, `shuffled` (another position's label) and `nearest` are over the median distance to
    all centers instead, `raw` values with the centers as they stand. Means over positions.

    Args:
        hidden_states: (N, D) as the head sees them. labels: (N,) next tokens. centers: (V, D). The first half chooses
            the scale, the second is measured.
    """
    x, w = hidden_states.double(), centers.detach().cpu().double()
    spread = (w - w.mean(0)).square().sum(1).mean()
    if spread <= COLLAPSED * w.square().sum(1).mean():
        return LabelDistance({"positions": 0, "flag": "the centers are collapsed"})
    rng = np.random.default_rng(seed)
    half = len(x) // 2
    fit, measured = slice(max(0, half - MAX_POSITIONS), half), slice(half, half + MAX_POSITIONS)
    mean_state, mean_center = x[fit].mean(0), w[labels[fit]].mean(0)
    matched = ((x[fit] - mean_state).square().sum(1).mean() / spread).sqrt()
    other = torch.from_numpy(rng.permutation(half))[: len(x[fit])] % len(x[fit])

    def moved(scale: Tensor) -> Tensor:
        return scale * (w - mean_center) + mean_state

    def gain(scale: Tensor) -> float:  # of the label over another position's: no scale wins this by norms alone
        own, foreign = ((x[fit] - moved(scale)[to]).norm(dim=1) for to in (labels[fit], labels[fit][other]))
        return float(own.sum() / foreign.sum())

    scale = min((matched * s for s in SCALES), key=gain)
    reference = torch.from_numpy(rng.permutation(len(w))[:REFERENCE_CENTERS])
    own, wrong, nearest = _ratios(x[measured], labels[measured], moved(scale), reference, rng)
    raw_own, raw_wrong, raw_nearest = _ratios(x[measured], labels[measured], w, reference, rng)
    value, replicates = segment_ratio(own, wrong, seed)
    row = {
        "positions": len(own),
        "scale": float(scale),
        "label_over_shuffled": value,
        "label_over_shuffled_interval": percentile_interval(replicates),
        "label": float(own.mean()),
        "shuffled": float(wrong.mean()),
        "nearest": float(nearest.mean()),
        "raw_label": float(raw_own.mean()),
        "raw_shuffled": float(raw_wrong.mean()),
        "raw_nearest": float(raw_nearest.mean()),
        "flag": None,
    }
    return LabelDistance(row, (value, replicates))


def _ratios(
    x: Tensor, labels: Tensor, centers: Tensor, reference: Tensor, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the label's center, to another position's, and to the nearest, over the median of those to the
    reference centers; (N,) each."""
    order = labels[torch.from_numpy(rng.permutation(len(labels)))]
    found: list[list[Tensor]] = [[], [], []]
    for rows, label, other in zip(x.split(ROWS), labels.split(ROWS), order.split(ROWS), strict=True):
        distances = torch.cdist(rows.float(), centers.float())  # (n, V)
        median = distances[:, reference].median(1).values.clamp(min=torch.finfo(torch.float32).tiny)
        at = distances.gather(1, torch.stack([label, other], 1)) / median[:, None]
        for held, ratio in zip(found, (at[:, 0], at[:, 1], distances.amin(1) / median), strict=True):
            held.append(ratio)
    own, wrong, nearest = (torch.cat(held).double().numpy() for held in found)
    return own, wrong, nearest
