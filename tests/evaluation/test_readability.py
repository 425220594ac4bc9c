"""Planted geometry, where the truth is known; degenerate embeddings, which must not win; independent
implementations."""

import json
import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.arms import compare_arms, parse_arms
from harmonic_gpt.evaluation.comparison.report import first_screen, write_html
from harmonic_gpt.evaluation.measures.analogies import analogy_ranks
from harmonic_gpt.evaluation.measures.bootstrap import (
    bootstrap_means,
    difference_over_runs,
    percentile_interval,
    sign_test,
)
from harmonic_gpt.evaluation.measures.class_centers import class_centers, convex_distance
from harmonic_gpt.evaluation.measures.geometry import (
    WITHOUT_FIRST,
    compression,
    effective_rank,
    mean_cosine,
    nearest_rows,
    participation_ratio,
    spectrum,
)
from harmonic_gpt.evaluation.measures.parallelogram import paper_test, strict_test
from harmonic_gpt.evaluation.measures.similarity import layer_similarity, linear_cka, rsa
from harmonic_gpt.evaluation.tasks.word_pairs import BUILT_IN, TokenPairs, load_tasks, trivial

P, D = 40, 24


def pairs(count=P) -> TokenPairs:
    ids = np.arange(2 * count).reshape(count, 2)
    return TokenPairs(ids, [(str(a), str(b)) for a, b in ids], {"pairs": count, "used": count})


def planted(kind: str) -> torch.Tensor:
    """(V, D): row 2p is the first word of pair p, row 2p + 1 its second; 300 more rows belong to no pair."""
    torch.manual_seed(1)
    rows = torch.randn(2 * P + 300, D)
    a, b = rows[0 : 2 * P : 2], rows[1 : 2 * P : 2]
    if kind == "lattice":
        b[:] = a + torch.randn(D)
    elif kind == "near":  # partners lie close, in no common direction
        b[:] = a + 0.1 * torch.randn(P, D)
    elif kind == "plane":  # two dimensions and no structure
        rows = rows[:, :2] @ torch.randn(2, D)
    elif kind == "point":
        rows[:] = torch.randn(D)
    elif kind == "two points":  # all first words on one point, all second words on another
        a[:], b[:] = torch.randn(D), torch.randn(D)
    return rows


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


def test_similarity_of_representations():
    x, unrelated = torch.randn(300, 10), torch.randn(300, 10)
    turned = 2 * x @ torch.linalg.qr(torch.randn(10, 10))[0] + 1
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-5)
    assert rsa(x, turned) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, unrelated) < 0.2
    a, b = ((m.double() - m.double().mean(0)).numpy() for m in (x, unrelated))
    assert rsa(x, unrelated) == pytest.approx(spearmanr(pdist(a, "cosine"), pdist(b, "cosine")).statistic)
    ka, kb = a @ a.T, b @ b.T  # the kernel form
    assert linear_cka(x, unrelated) == pytest.approx((ka * kb).sum() / np.sqrt((ka**2).sum() * (kb**2).sum()))
    assert np.isnan(linear_cka(x, torch.ones(300, 4)))


def test_layers_of_two_models_are_compared_with_a_shuffled_control():
    first, second, noise = torch.randn(200, 10), torch.randn(200, 6), torch.randn(200, 10)
    turned = 3 * second @ torch.linalg.qr(torch.randn(6, 6))[0]
    found = layer_similarity([first, second], [turned, first + 0.1 * noise, torch.ones(200, 3)])
    for key, function in (("cka", linear_cka), ("rsa", rsa)):
        values = found[key]
        assert values[0][0] == pytest.approx(function(first, turned))
        assert values[1][0] == pytest.approx(1, abs=1e-5)
        assert values[0][1] > 0.9
        assert values[0][2] is None  # a collapsed layer is like nothing
        assert found[f"{key}_shuffled"] < 0.2
    json.dumps(found, allow_nan=False)


def test_analogies_are_answered_where_there_are_any_and_ties_count_against():
    def ranks(kind: str) -> dict[str, np.ndarray]:
        return analogy_ranks(planted(kind), {"task": pairs().ids})["task"]

    assert (ranks("lattice")["distance"] == 0).all()
    assert (ranks("random")["distance"] < 5).mean() < 0.2
    assert (ranks("near")["no offset"] == 0).all()
    assert (ranks("point")["distance"] > 300).all()


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
    scaled = class_centers(contexts, labels, 0.01 * centers + 3).row  # a head with another scale and origin
    assert scaled["cosine"] == pytest.approx(good["cosine"], abs=1e-4)
    assert scaled["own_nearest"] == pytest.approx(good["own_nearest"], abs=0.01)
    assert abs(class_centers(contexts, labels, torch.randn(30, 8)).row["cosine"]) < 0.3
    assert class_centers(contexts, labels, torch.ones(30, 8)).row["flag"] == "the centers are collapsed"
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    assert convex_distance(torch.tensor([0.2, 0.2]), corners) == pytest.approx(0, abs=1e-5)
    assert convex_distance(torch.tensor([-1.0, 0]), corners) == pytest.approx(1, rel=1e-4)


def test_intervals():
    values = np.random.default_rng(0).normal(size=400)
    low, high = percentile_interval(bootstrap_means(values))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert difference_over_runs([1.0], [2.0, 3.0]) is None
    low, high = difference_over_runs([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert low < -1 < high < 0
    assert sign_test(10, 0) == pytest.approx(2 / 1024)


def test_built_in_tasks_and_foreign_folders(tmp_path):
    tasks = load_tasks()
    assert len(tasks) >= 10
    assert all(30 <= len(found) <= 200 for found in tasks.values())
    assert load_tasks(BUILT_IN) == tasks
    (tmp_path / "bad.json").write_text('[{"in": "a"}]')
    with pytest.raises(InputError, match=r"bad\.json: expected a list"):
        load_tasks(tmp_path)
    with pytest.raises(InputError, match="no word pairs"):
        load_tasks(tmp_path / "nowhere")


def test_arms_are_read_in_order():
    assert parse_arms(["a", "b"]) == {"a": ["a"], "b": ["b"]}
    assert parse_arms(["--arm", "h", "a", "b", "--arm", "s", "c"]) == {"h": ["a", "b"], "s": ["c"]}
    for bad, message in (
        (["a", "--arm", "h", "b"], "before the first"),
        (["--arm", "h", "--arm", "s", "b"], "got no model"),
        (["--arm"], "got no model"),
        (["--arm", "h", "a", "--arm", "h", "b"], "twice"),
        (["a", "--tokns", "5"], "unknown option --tokns"),
    ):
        with pytest.raises(InputError, match=message):
            parse_arms(bad)


def measured(nats, ratio):
    return {"nats": (nats, np.empty(0)), "parallelogram": (ratio, ratio + np.linspace(-0.01, 0.01, 100))}


def test_first_screen_says_where_harmonic_is_not_better(tmp_path):
    tasks = [{"t": np.full(100, 0.9)}, {"t": np.full(100, 0.8)}]
    comparison = compare_arms(
        {"harmonic": [0], "standard": [1]},
        [measured(5.2, 0.9), measured(5.1, 0.8)],
        tasks,
        [{"t": (1.0, 1.0)}, {"t": (2.0, 2.0)}],
    )
    text = "\n".join(first_screen(comparison))
    assert "standard is better by 0.1000 nats" in text
    assert "spread over seeds is unknown" in text
    assert "Where harmonic is not better**: worse in nats, parallelogram" in text
    assert comparison["differences"][0]["tasks"]["lost"] == ["t"]
    assert comparison["differences"][0]["paper_tasks"]["lower"] == ["t"]  # the raw loss may say the opposite
    assert comparison["differences"][0]["paper_tasks"]["shuffled_lower"] == ["t"]
    assert (
        "which collapse would win, harmonic is lower in 1 of 1 (p = 1), and for the same words paired at random in 1."
        in text
    )
    seeds = compare_arms(
        {"harmonic": [0, 1], "standard": [2, 3]}, [measured(n, 0.9) for n in (5.0, 5.01, 6.0, 6.01)], [{}] * 4, [{}] * 4
    )
    row = seeds["differences"][0]["headlines"]["nats"]
    assert (row["over"], row["better"]) == ("seeds", "harmonic")
    json.dumps(seeds, allow_nan=False)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    (tmp_path / "figure.png").write_bytes(b"png")
    write_html("# A <script>alert(1)</script>\n\n![f](figure.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "<td>1</td>" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "data:image/png;base64," in page
