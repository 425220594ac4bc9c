"""Are rows of the unembedding the centers of their contexts (Baek et al., theorem 3)? Standard heads are scaled fairly
first."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.evaluation.measures.bootstrap import bootstrap_means, percentile_interval
from harmonic_gpt.evaluation.measures.geometry import COLLAPSED
from harmonic_gpt.extras import require

MIN_CONTEXTS = 20
MAX_TOKENS = 200
MAX_CONTEXTS = 64  # of a token, for the best convex combination
MAX_POSITIONS = 2048  # at which all centers are compared


@dataclass(frozen=True)
class ClassCenters:
    row: dict
    cosines: np.ndarray  # (K,) of each token's center with the mean of its contexts, both centered
    reciprocal_ranks: np.ndarray  # (K,) 1 / rank of the own center among all, by distance from that mean


def convex_distance(point: Tensor, contexts: Tensor) -> float:
    """Distance of a point (D,) to the convex hull of contexts (n, D): non-negative least squares, weights summing to
    one."""
    require("eval", "scipy")
    from scipy.optimize import nnls

    heavy = 1e3 * float(contexts.norm(dim=1).max().clamp(min=1e-12))  # holds the sum of the weights to one
    system = np.vstack([contexts.double().numpy().T, np.full(len(contexts), heavy)])
    weights, _ = nnls(system, np.append(point.double().numpy(), heavy))
    return float((point.double() - torch.from_numpy(weights / weights.sum()) @ contexts.double()).norm())


def class_centers(hidden_states: Tensor, labels: Tensor, centers: Tensor, seed: int = 0) -> ClassCenters:
    """Compare the centers of frequent tokens with the hidden states that precede them.

    A standard head fixes neither origin nor scale of its rows, so every head's centers are first moved by the best
    common scale and shift onto the tokens' mean hidden states (least squares; the same two freedoms for both heads).
    What is left:

    - cosine: of center and mean, both centered over tokens; 0 for unrelated ones. `variance_explained`: of the means,
      by the centers. `shuffled_cosine`: centers of other tokens.
    - own_nearest: share of positions whose own center is the nearest of all (raw: without the fit; a harmonic model's
    accuracy).
    - own_center: rank of the own center among all V centers by distance from the mean context; 1 is the nearest, ties
      count against it. The mean of 1 / rank, the median rank, and the share that is first.
    - convex: median distance of a center to the convex hull of its own contexts over that to another token's contexts;
      below 1 if the center belongs to its own.

    Collapsed centers have a flag, and 0 for cosine and own center, so that they are behind those that are not; the rest
    is not measured.

    Args:
        hidden_states: (N, D) as the head sees them. labels: (N,) next tokens. centers: (V, D).
    """
    counts = torch.bincount(labels, minlength=len(centers))
    tokens = counts.argsort(descending=True, stable=True)[:MAX_TOKENS]
    tokens = tokens[counts[tokens] >= MIN_CONTEXTS]
    if len(tokens) < 8:
        note = f"fewer than 8 tokens occur {MIN_CONTEXTS} times: use more --tokens"
        return ClassCenters({"tokens": len(tokens), "cosine": None, "flag": note}, np.empty(0), np.empty(0))
    x, w = hidden_states.double(), centers.detach().cpu().double()
    contexts = [x[labels == token] for token in tokens]
    means = torch.stack([c.mean(0) for c in contexts])  # (K, D)
    mean_part, center_part = means - means.mean(0), w[tokens] - w[tokens].mean(0)
    power = center_part.square().sum()
    if power <= COLLAPSED * w[tokens].square().sum():
        flagged = {"tokens": len(tokens), "cosine": 0.0, "own_center": 0.0, "flag": "the centers are collapsed"}
        return ClassCenters(flagged, np.zeros(len(tokens)), np.zeros(len(tokens)))
    scale = (mean_part * center_part).sum() / power
    moved = scale * (w - w[tokens].mean(0)) + means.mean(0)  # (V, D)
    cosines = torch.nn.functional.cosine_similarity(mean_part, center_part, dim=1).numpy()
    from_means = torch.cdist(means.float(), moved.float())  # (K, V)
    ranks = (from_means <= from_means.gather(1, tokens[:, None])).sum(1).double().numpy()
    rng = np.random.default_rng(seed)
    other = (np.arange(len(tokens)) + 1 + rng.integers(len(tokens) - 1)) % len(tokens)
    hull = []
    for k in range(min(len(tokens), 50)):
        own, foreign = (contexts[i][:MAX_CONTEXTS] for i in (k, int(other[k])))
        least = min(len(own), len(foreign))  # hulls of as many points
        hull.append(
            convex_distance(moved[tokens[k]], own[:least])
            / max(convex_distance(moved[tokens[k]], foreign[:least]), 1e-12)
        )
    frequent = torch.isin(labels, tokens).nonzero().squeeze(1)
    frequent = frequent[torch.from_numpy(rng.permutation(len(frequent))[:MAX_POSITIONS])]
    own, nearest = _distances(x[frequent], labels[frequent], moved)
    raw_own, raw_nearest = _distances(x[frequent], labels[frequent], w)
    row = {
        "tokens": len(tokens),
        "contexts": int(counts[tokens].sum()),
        "scale": float(scale),
        "cosine": float(cosines.mean()),
        "cosine_interval": percentile_interval(bootstrap_means(cosines)),
        "shuffled_cosine": float(torch.nn.functional.cosine_similarity(mean_part, center_part[other], dim=1).mean()),
        "variance_explained": float(1 - (mean_part - scale * center_part).square().sum() / mean_part.square().sum()),
        "own_center": float((1 / ranks).mean()),
        "own_center_interval": percentile_interval(bootstrap_means(1 / ranks)),
        "own_center_median_rank": float(np.median(ranks)),
        "own_center_first": float((ranks == 1).mean()),
        "positions": len(frequent),
        "own_over_nearest_other": float((own / nearest.clamp(min=1e-12)).median()),
        "own_nearest": float((own < nearest).double().mean()),
        "own_nearest_raw": float((raw_own < raw_nearest).double().mean()),
        "convex_own_over_other": float(np.median(hull)),
        "flag": None,
    }
    return ClassCenters(row, cosines, 1 / ranks)


def _distances(x: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the own center, and to the nearest other one; (N,) each."""
    own, nearest = [], []
    for rows, label in zip(x.float().split(512), labels.split(512), strict=True):
        distances = torch.cdist(rows, centers.float())
        own.append(distances.gather(1, label[:, None]).squeeze(1))
        nearest.append(distances.scatter_(1, label[:, None], torch.inf).amin(1))
    return torch.cat(own), torch.cat(nearest)
