"""Geometry of a matrix of vectors: pure functions of tensors. V rows (tokens or positions), D dimensions.

All in float64. No measure of compression here is a merit by itself: a matrix whose rows are all alike is the most
compressed one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 8192  # rows that are widened to float64 at a time
# A spread below this share of the rows' mean squared norm is float32's rounding, not structure
COLLAPSED = 1e-10
# All of space but the first principal component, which in dot-product heads is how frequent a token is
# (docs/results/reading.md)
WITHOUT_FIRST = "without the first"


@dataclass(frozen=True)
class Spectrum:
    """Principal components of the rows of a matrix."""

    mean: Tensor  # (D,) float64
    variances: np.ndarray  # (K,) float64, descending, K = min(V, D)
    directions: Tensor  # (D, K) float64, one unit column a component
    mean_squared_norm: float  # of the rows, not centered

    @property
    def total(self) -> float:
        return float(self.variances.sum())

    @property
    def collapsed(self) -> bool:
        """All rows are the same, as far as float32 can tell."""
        return self.total <= COLLAPSED * max(self.mean_squared_norm, np.finfo(np.float64).tiny)

    def coordinates(self, rows: Tensor, components: int | str | None = None) -> Tensor:
        """Centered rows (N, D) in the first `components` principal directions (N, k), or WITHOUT_FIRST; None: in all of
        space (N, D)."""
        centered = rows.double() - self.mean
        return centered if components is None else centered @ self.directions[:, _kept(components)]

    def scale(self, components: int | str | None = None) -> float:
        """sigma of equation 3: root of the mean squared norm of the centered (projected) rows."""
        return float(np.sqrt(self.variances[_kept(components)].sum()))

    def collapsed_in(self, components: int | str | None) -> bool:
        """Nothing is left of the rows' spread in these components."""
        return self.collapsed or self.scale(components) ** 2 <= COLLAPSED * self.total


def _kept(components: int | str | None) -> slice:
    return slice(1, None) if components == WITHOUT_FIRST else slice(components)


def spectrum(matrix: Tensor) -> Spectrum:
    """Mean and principal components (population covariance) of the rows of (V, D). Raises FloatingPointError if they
    are not finite."""
    matrix = matrix.detach().cpu()
    mean = sum(rows.double().sum(0) for rows in matrix.split(CHUNK)) / len(matrix)
    squared = sum(rows.double().square().sum().item() for rows in matrix.split(CHUNK)) / len(matrix)
    if not np.isfinite(squared):
        raise FloatingPointError("the matrix has values that are not finite")
    covariance = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in matrix.split(CHUNK):
        centered = rows.double() - mean
        covariance.addmm_(centered.T, centered)
    variances, directions = torch.linalg.eigh(covariance / len(matrix))
    keep = min(matrix.shape)
    variances = variances.flip(0).clamp(min=0).numpy()[:keep]
    return Spectrum(mean, variances, directions.flip(1)[:, :keep], squared)


def cumulative_explained_variance(matrix: Tensor | Spectrum) -> np.ndarray:
    """Share of the variance of the rows of (V, D) in the first k principal components, for k = 1..min(V, D).

    The paper's measure of compression (Baek et al., section 2). (K,) float64; the last entry is 1. NaN for a
    collapsed matrix.
    """
    principal = matrix if isinstance(matrix, Spectrum) else spectrum(matrix)
    if principal.collapsed:
        return np.full(len(principal.variances), np.nan)
    return np.minimum(np.cumsum(principal.variances) / principal.total, 1.0)


def components_for(curve: np.ndarray, share: float) -> int:
    """Fewest principal components that hold `share` of the variance, from a cumulative curve."""
    return int(np.searchsorted(curve, share - 1e-12)) + 1


def effective_rank(variances: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 1 to K."""
    singular = np.sqrt(variances)
    p = singular[singular > 0] / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(variances: np.ndarray) -> float:
    """(sum of variances)^2 / sum of their squares: K for an even spread, 1 for a line."""
    return float(variances.sum() ** 2 / np.square(variances).sum())


def mean_cosine(matrix: Tensor) -> float:
    """Mean cosine of all pairs of different rows, not centered: 0 isotropic, 1 all one direction (Ethayarajh 2019).
    Exact."""
    count, total = 0, torch.zeros(matrix.shape[1], dtype=torch.float64)
    for rows in matrix.detach().cpu().split(CHUNK):
        norms = rows.double().norm(dim=1, keepdim=True)
        alive = norms.squeeze(1) > 0
        total += (rows.double()[alive] / norms[alive]).sum(0)
        count += int(alive.sum())
    return float((total.square().sum() - count) / (count * (count - 1))) if count > 1 else float("nan")


def compression(matrix: Tensor, principal: Spectrum | None = None) -> dict:
    """How few dimensions the rows of (V, D) live in. `collapsed` rows have no shape: every other value is None."""
    principal = principal or spectrum(matrix)
    shape = {"rows": len(matrix), "dimensions": matrix.shape[1], "collapsed": principal.collapsed}
    keys = (
        "components_for_90_percent",
        "explained_variance_2",
        "explained_variance_50",
        "effective_rank",
        "participation_ratio",
    )
    if principal.collapsed:
        return shape | dict.fromkeys((*keys, "mean_cosine"))
    curve = cumulative_explained_variance(principal)
    values = (
        components_for(curve, 0.9),
        float(curve[min(1, len(curve) - 1)]),
        float(curve[min(49, len(curve) - 1)]),
        effective_rank(principal.variances),
        participation_ratio(principal.variances),
    )
    return shape | dict(zip(keys, values, strict=True)) | {"mean_cosine": mean_cosine(matrix)}


def norm_statistics(embedding: Tensor) -> dict[str, float]:
    """Mean, standard deviation, smallest and largest L2 norm of the rows of (V, D)."""
    norms = embedding.detach().double().norm(dim=1)
    return {
        "mean": norms.mean().item(),
        "std": norms.std().item(),
        "min": norms.min().item(),
        "max": norms.max().item(),
    }


def nearest_rows(matrix: Tensor, queries: Tensor, count: int, by: str = "distance") -> tuple[Tensor, Tensor]:
    """The `count` rows of (V, D) nearest to each query (Q, D): indices (Q, count) and their distances or cosines,
    best first.

    Args:
        by: "distance" (Euclidean) or "cosine".
    """
    matrix, queries = matrix.detach().float(), queries.detach().float()
    if by == "distance":
        scores = -torch.cdist(
            queries,
            matrix,
            compute_mode="donot_use_mm_for_euclid_dist" if len(queries) <= 16 else "use_mm_for_euclid_dist",
        )
    else:
        scores = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(matrix, dim=1).T
    values, indices = scores.topk(count, dim=1)
    return indices, -values if by == "distance" else values
