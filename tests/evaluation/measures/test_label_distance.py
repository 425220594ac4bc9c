"""Planted labels: near their centers, unrelated to them, collapsed, and near everything."""

import pytest
import torch

from harmonic_gpt.evaluation.measures.label_distance import label_distance


def planted(noise: float, count: int = 1200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    centers, labels = torch.randn(60, 8), torch.randint(0, 60, (count,))
    return centers[labels] + noise * torch.randn(count, 8), labels, centers


def test_states_at_their_labels_are_near_whatever_the_heads_scale_and_origin():
    x, labels, centers = planted(0.2)
    near = label_distance(x, labels, centers)
    assert near.row["label_over_shuffled"] < 0.2
    assert near.row["raw_label"] < 0.2
    assert near.row["nearest"] <= near.row["label"] < near.row["shuffled"]
    assert near.headline[0] == pytest.approx(near.row["label"] / near.row["shuffled"])
    low, high = near.row["label_over_shuffled_interval"]
    assert low < near.headline[0] < high
    moved = label_distance(x, labels, 0.03 * centers + 2)
    assert moved.headline[0] == pytest.approx(near.headline[0], abs=0.02)
    assert moved.row["raw_label"] > 0.9


def test_the_scale_is_the_one_that_serves_the_head_best():
    x, labels, centers = planted(1.0)
    # Noise as wide as the centers: own and other labels differ most at sqrt(2), own distances are least at 1
    assert label_distance(x, labels, centers).row["scale"] == pytest.approx(2**0.5, rel=0.1)


def test_unrelated_and_collapsed_centers_win_nothing():
    x, labels, _ = planted(0.2)
    unrelated = label_distance(x, labels, torch.randn(60, 8))
    assert unrelated.headline[0] == pytest.approx(1, abs=0.03)
    collapsed = label_distance(x, labels, torch.randn(8).expand(60, 8))
    assert (collapsed.headline, collapsed.row["flag"]) == (None, "the centers are collapsed")


def test_frequent_tokens_whose_centers_are_merely_short_do_not_win():
    torch.manual_seed(0)
    centers, labels = torch.randn(60, 8), torch.randint(0, 6, (1200,))
    centers[:6] *= 0.05  # the labels that occur lie in the middle of everything
    found = label_distance(torch.randn(1200, 8), labels, centers)
    assert found.row["raw_label"] < 0.8  # the ratio to the median distance is deceived
    assert found.row["raw_shuffled"] < 0.8
    assert found.headline[0] == pytest.approx(1, abs=0.02)
