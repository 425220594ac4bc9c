"""Geometry of an embedding matrix: pure functions of tensors."""

import numpy as np
from sklearn.decomposition import PCA
from torch import Tensor


def cumulative_explained_variance(embedding: Tensor) -> np.ndarray:
    """Share of the variance of the rows of `embedding` (V, D) in the first k principal components, for k = 1..min(V, D).

    The paper's measure of compression (Baek et al., section 2). Float64; the last entry is 1.
    """
    ratios = PCA(svd_solver="covariance_eigh").fit(embedding.detach().cpu().double().numpy()).explained_variance_ratio_
    return np.minimum(np.cumsum(ratios), 1.0)


def components_for(curve: np.ndarray, share: float) -> int:
    """Fewest principal components that hold `share` of the variance, from a cumulative curve."""
    return int(np.searchsorted(curve, share - 1e-12)) + 1


def norm_statistics(embedding: Tensor) -> dict[str, float]:
    """Mean, standard deviation, smallest and largest L2 norm of the rows of (V, D)."""
    norms = embedding.detach().double().norm(dim=1)
    return {"mean": norms.mean().item(), "std": norms.std().item(), "min": norms.min().item(), "max": norms.max().item()}
