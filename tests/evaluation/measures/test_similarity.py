"""Similarity of representations against formulas and independent implementations."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from harmonic_gpt.evaluation.measures.similarity import layer_similarity


def test_similarity_of_representations():
    x, unrelated = torch.randn(300, 10), torch.randn(300, 10)
    turned = 2 * x @ torch.linalg.qr(torch.randn(10, 10))[0] + 1
    found = layer_similarity([x], [turned, unrelated])
    (same_cka, cka), (same_rsa, rsa) = found["cka"][0], found["rsa"][0]
    assert same_cka == pytest.approx(1, abs=1e-5)
    assert same_rsa == pytest.approx(1, abs=1e-5)
    assert cka < 0.2
    a, b = ((m.double() - m.double().mean(0)).numpy() for m in (x, unrelated))
    assert rsa == pytest.approx(spearmanr(pdist(a, "cosine"), pdist(b, "cosine")).statistic)
    ka, kb = a @ a.T, b @ b.T  # the kernel form
    assert cka == pytest.approx((ka * kb).sum() / np.sqrt((ka**2).sum() * (kb**2).sum()))


def test_layers_of_two_models_are_compared_with_a_shuffled_control():
    first, second, noise = torch.randn(200, 10), torch.randn(200, 6), torch.randn(200, 10)
    turned = 3 * second @ torch.linalg.qr(torch.randn(6, 6))[0]
    found = layer_similarity([first, second], [turned, first + 0.1 * noise, torch.ones(200, 3)])
    alone = layer_similarity([first], [turned])
    for key in ("cka", "rsa"):
        values = found[key]
        assert values[0][0] == pytest.approx(alone[key][0][0])
        assert values[1][0] == pytest.approx(1, abs=1e-5)
        assert values[0][1] > 0.9
        assert values[0][2] is None  # a collapsed layer is like nothing
        assert found[f"{key}_shuffled"] < 0.2
    json.dumps(found, allow_nan=False)
