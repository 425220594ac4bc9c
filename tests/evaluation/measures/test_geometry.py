"""Geometry of planted matrices, against formulas and independent implementations."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from harmonic_gpt.evaluation.measures.geometry import (
    components_for,
    cumulative_explained_variance,
    effective_rank,
    mean_cosine,
    nearest_rows,
    norm_statistics,
    participation_ratio,
    spectrum,
)


def test_a_plane_needs_two_components():
    rotation = torch.linalg.qr(torch.randn(20, 20))[0][:2]
    curve = cumulative_explained_variance(torch.randn(500, 2) @ rotation + 5.0)
    assert curve[1] == pytest.approx(1.0, abs=1e-9)
    assert components_for(curve, 0.999) == 2


def test_isotropic_noise_needs_them_all():
    curve = cumulative_explained_variance(torch.randn(20_000, 10))
    np.testing.assert_allclose(curve, np.arange(1, 11) / 10, atol=0.02)
    assert components_for(curve, 0.9) == 9


def test_rotation_translation_and_scale_change_nothing_and_numpy_agrees():
    x = torch.randn(300, 12) * torch.linspace(0.1, 3, 12)
    curve = cumulative_explained_variance(x)
    moved = 7 * x @ torch.linalg.qr(torch.randn(12, 12))[0] + 3
    np.testing.assert_allclose(cumulative_explained_variance(moved), curve, atol=1e-5)
    singular = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(curve, np.cumsum(singular) / singular.sum(), atol=1e-6)


def test_norms():
    stats = norm_statistics(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert (stats["mean"], stats["min"], stats["max"]) == (3.0, 1.0, 5.0)
    assert stats["std"] == pytest.approx(8**0.5)


def test_spectrum_measures_agree_with_scikit_learn_and_formulas():
    rows = torch.randn(500, 12) * torch.linspace(0.1, 3, 12) + 4
    np.testing.assert_allclose(
        spectrum(rows).variances, PCA().fit(rows.double().numpy()).explained_variance_ * 499 / 500, rtol=1e-9
    )
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert participation_ratio(np.array([1.0, 0, 0])) == pytest.approx(1)
    unit = torch.nn.functional.normalize(rows.double(), dim=1).numpy()
    assert mean_cosine(rows) == pytest.approx(1 - pdist(unit, "cosine").mean())
    indices, distances = nearest_rows(rows, rows[:3], 2)
    assert indices[:, 0].tolist() == [0, 1, 2]
    assert distances[0, 1] == pytest.approx(torch.cdist(rows[:1], rows)[0].sort().values[1].item(), rel=1e-5)
