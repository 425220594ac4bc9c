"""Planted geometry, where the truth is known; degenerate embeddings, which must not win."""

import numpy as np
import pytest
import torch

from harmonic_gpt.evaluation.measures.geometry import WITHOUT_FIRST, compression, spectrum
from harmonic_gpt.evaluation.measures.parallelogram import paper_test, strict_test
from harmonic_gpt.evaluation.tasks.word_pairs import TokenPairs, trivial
from tests.evaluation.measures.planted import D, P, pairs, planted


def strict(rows, components=None):
    return strict_test(rows, spectrum(rows), pairs(), components).row


def test_a_lattice_has_no_loss_and_random_vectors_the_analytic_one():
    row = strict(planted("lattice"))
    assert row["ratio"] < 1e-5
    assert row["offset_cosine"] == pytest.approx(1, abs=1e-5)
    rows = torch.randn(4000, 2)
    # Two components of a normal cloud: the sum of four has norm 2 chi_2, sigma is sqrt(2): mean sqrt(pi)
    paper = paper_test(rows, spectrum(rows), pairs(1500)).row
    assert paper["loss"] == pytest.approx(np.sqrt(np.pi), rel=0.03)
    assert paper["shuffled_loss"] == pytest.approx(np.sqrt(np.pi), rel=0.03)
    lattice = paper_test(planted("lattice"), spectrum(planted("lattice")), pairs()).row
    assert lattice["loss"] < 1e-5 < 0.5 < lattice["shuffled_loss"]
    random = strict(planted("random"))
    assert random["ratio_interval"][0] < 1 < random["ratio_interval"][1]
    assert abs(random["offset_cosine"]) < 0.05


def test_the_ratio_is_the_mean_over_a_direct_loop():
    rows = planted("random")
    row, sigma = strict(rows), (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    offsets = rows[0 : 2 * P : 2] - rows[1 : 2 * P : 2]
    losses = [(offsets[i] - offsets[j]).norm() / sigma for i in range(P) for j in range(i)]
    assert row["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert row["quadruples"] == len(losses)
    rng = np.random.default_rng(7)  # its own shuffles
    control = []
    for _ in range(60):
        order = rng.permutation(P)
        v = rows[0 : 2 * P : 2] - rows[1 : 2 * P : 2][order]
        control.append(torch.pdist(v).mean().item() / sigma.item())
    assert row["control"] == pytest.approx(np.mean(control), rel=0.01)


@pytest.mark.parametrize("kind", ["random", "lattice", "near"])
def test_rotation_translation_and_scale_change_nothing(kind):
    rows = planted(kind)
    moved = 3 * rows.double() @ torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0] + 5
    for key in ("loss", "ratio", "offset_cosine"):
        assert strict(moved)[key] == pytest.approx(strict(rows)[key], abs=1e-5)


def test_collapse_is_flagged_and_does_not_win():
    plane, random = planted("plane"), planted("random")
    assert strict(plane)["loss"] < strict(random)["loss"]  # the raw loss rewards it
    assert strict(plane)["ratio_interval"][1] > 0.9  # the ratio does not
    assert compression(plane)["effective_rank"] < 2.1
    point = strict(planted("point"))
    assert (point["ratio"], point["flag"]) == (None, "the embedding is collapsed")
    assert compression(planted("point"))["collapsed"]
    two = strict(planted("two points"))
    assert (two["ratio"], two["flag"]) == (None, "the words lie on one point")
    near = strict(planted("near"))
    assert near["ratio"] < 0.2  # the ratio alone would be fooled by synonyms,
    assert abs(near["offset_cosine"]) < 0.1  # the cosine of offsets is not
    assert strict(planted("lattice"))["offset_cosine"] > 0.99


def test_a_frequency_axis_does_not_win():
    """Partners that differ along one large common direction, and in nothing else: as rare words from their frequent
    base."""
    rows = planted("random")
    rows[:, 0] = 8 * torch.randn(len(rows))
    rows[1 : 2 * P : 2, 0] = rows[0 : 2 * P : 2, 0] - 8
    fooled, judged = strict(rows), strict(rows, WITHOUT_FIRST)
    assert fooled["ratio_interval"][1] < 0.9
    assert fooled["offset_cosine"] > 0.4
    assert judged["ratio_interval"][0] < 1 < judged["ratio_interval"][1]
    assert abs(judged["offset_cosine"]) < 0.05
    centered = (rows - rows.mean(0)).double()
    first = torch.linalg.svd(centered, full_matrices=False).Vh[:1]
    rest = centered - centered @ first.T @ first
    sigma = rest.square().sum(1).mean().sqrt()
    offsets = rest[0 : 2 * P : 2] - rest[1 : 2 * P : 2]
    assert judged["loss"] == pytest.approx((torch.pdist(offsets).mean() / sigma).item(), rel=1e-5)
    assert strict(planted("lattice"), WITHOUT_FIRST)["ratio"] < 1e-5
    line = torch.randn(2 * P + 300, 1) @ torch.randn(1, D)
    assert strict(line.double(), WITHOUT_FIRST)["flag"] == "the embedding is collapsed"


def test_trivial_quadruples_are_counted_and_left_out():
    ids = np.array([[0, 1], [0, 1], [2, 3], [1, 0]])
    assert trivial(ids, np.array([[0, 1], [0, 2], [0, 3]])).tolist() == [True, False, False]
    same_output = TokenPairs(np.array([[i, 50] for i in range(10)]), [], {})
    rows = torch.randn(60, 5)
    row = strict_test(rows, spectrum(rows), same_output).row
    assert (row["quadruples"], row["excluded_quadruples"]) == (0, 45)
    assert row["ratio"] is None
