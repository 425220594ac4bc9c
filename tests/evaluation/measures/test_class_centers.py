"""Planted class centers, scaled and moved, collapsed and unrelated."""

import pytest
import torch

from harmonic_gpt.evaluation.measures.class_centers import class_centers, convex_distance


def test_class_centers():
    torch.manual_seed(0)
    centers, labels = torch.randn(30, 8), torch.arange(30).repeat(40)
    contexts = centers[labels] + 0.3 * torch.randn(1200, 8)
    good = class_centers(contexts, labels, centers).row
    assert good["cosine"] > 0.98
    assert good["own_nearest_raw"] > 0.95
    assert good["own_nearest"] > 0.95
    assert good["own_over_nearest_other"] < 0.5
    assert good["convex_own_over_other"] < 0.2
    assert (good["own_center"], good["own_center_median_rank"]) == (1, 1)
    scaled = class_centers(contexts, labels, 0.01 * centers + 3).row  # a head with another scale and origin
    assert scaled["cosine"] == pytest.approx(good["cosine"], abs=1e-4)
    assert scaled["own_nearest"] == pytest.approx(good["own_nearest"], abs=0.01)
    assert scaled["own_center"] == 1
    unrelated = class_centers(contexts, labels, torch.randn(30, 8)).row
    assert abs(unrelated["cosine"]) < 0.3
    assert unrelated["own_center"] < 0.3
    collapsed = class_centers(contexts, labels, torch.ones(30, 8)).row
    assert collapsed["flag"] == "the centers are collapsed"
    assert (collapsed["cosine"], collapsed["own_center"]) == (0, 0)
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    assert convex_distance(torch.tensor([0.2, 0.2]), corners) == pytest.approx(0, abs=1e-5)
    assert convex_distance(torch.tensor([-1.0, 0]), corners) == pytest.approx(1, rel=1e-4)
