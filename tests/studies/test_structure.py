import numpy as np
import pytest

from harmonic_gpt.studies.structure import METRICS, best_coset_silhouette, coset_partitions, epochs_to_threshold
from harmonic_gpt.studies.tasks import LAST_NODE, TASKS, symmetric_group, task

RNG = np.random.default_rng(0)


def _perfect(name: str) -> np.ndarray:
    """A representation (P, 2) with the task's structure."""
    if name == "in_context":
        i, j = np.divmod(np.arange(25), 5)
        return np.stack([i + 0.3 * j, 0.8 * j], 1)  # skewed: any lattice will do
    if name == "modular_addition":
        angle = 2 * np.pi * 7 * np.arange(31) / 31
        return np.stack([np.cos(angle), np.sin(angle)], 1)
    if name == "equivalence":
        return RNG.normal(size=(5, 2))[np.arange(40) % 5]
    if name == "genealogy":
        node = np.arange(1, LAST_NODE + 1)
        return np.stack([np.floor(np.log2(node)), RNG.normal(size=len(node)) * 5], 1)
    if name == "permutations":
        corners = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
        return np.concatenate([corners * r for r in range(1, 7)])
    return np.arange(30)[:, None] * np.array([1.0, 2.0])


def _embed(points: np.ndarray) -> np.ndarray:
    """The same in 16 dimensions: rotated, scaled, shifted."""
    rotation, _ = np.linalg.qr(RNG.normal(size=(16, 16)))
    return 3.7 * np.pad(points, ((0, 0), (0, 14))) @ rotation + RNG.normal(size=16)


@pytest.mark.parametrize("name", TASKS)
def test_perfect_representations_score_perfectly_and_random_ones_do_not(name):
    metric = METRICS[name]
    ideal = 1.0 if metric.higher_is_better else 0.0
    assert metric.function(_embed(_perfect(name))) == pytest.approx(ideal, abs=1e-6)
    random = [metric.function(RNG.normal(size=(len(task(name).points), 16))) for _ in range(5)]
    assert min(abs(value - ideal) for value in random) > 0.05
    if name == "equivalence":
        assert np.mean(random) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", TASKS)
def test_metrics_get_worse_with_noise(name):
    metric, perfect = METRICS[name], _perfect(name)
    noisy = [metric.function(_embed(perfect + s * perfect.std() * RNG.normal(size=perfect.shape))) for s in (0.05, 0.5)]
    assert (noisy[0] > noisy[1]) == metric.higher_is_better


def test_subgroups_of_s4():
    """30 subgroups, 28 of them proper and not trivial."""
    partitions = coset_partitions()
    assert len(partitions) == 2 * 28
    orders = [24 // (labels.max() + 1) for name, labels in partitions.items() if name.startswith("left")]
    assert {order: orders.count(order) for order in set(orders)} == {2: 9, 3: 4, 4: 7, 6: 4, 8: 3, 12: 1}
    for labels in partitions.values():
        assert len(set(np.bincount(labels))) == 1  # cosets are equally large


def test_silhouette_finds_planted_cosets():
    parity = np.array([sum(g[i] > g[j] for i in range(4) for j in range(i + 1, 4)) % 2 for g in symmetric_group()])
    points = _embed(np.stack([parity * 10.0, np.zeros(24)], 1) + 0.1 * RNG.normal(size=(24, 2)))
    score, partition = best_coset_silhouette(points)
    assert score > 0.95
    assert "order 12" in partition
    assert best_coset_silhouette(RNG.normal(size=(24, 16)))[0] < 0.2


def test_epochs_to_threshold():
    epochs = np.arange(1.0, 101.0)
    step = np.where(epochs >= 30, 1.0, 0.5)
    assert epochs_to_threshold(epochs, step) == 30
    dip = step.copy()
    dip[44] = 0.9  # epoch 45, not above
    assert epochs_to_threshold(epochs, dip) == 46
    assert np.isnan(epochs_to_threshold(epochs, np.full(100, 0.9)))
    late = np.where(epochs >= 90, 1.0, 0.5)
    assert np.isnan(epochs_to_threshold(epochs, late))  # 20 epochs were not seen
    ended = np.where(epochs <= 55, epochs, np.nan)
    assert epochs_to_threshold(ended, step) == 30
    assert epochs_to_threshold(epochs[::2], step[::2]) == 31  # measured at every other epoch
