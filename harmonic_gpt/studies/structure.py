"""How much of a task's structure shows in its embeddings, and when a run generalized: pure functions of arrays.

Every structure metric takes the embeddings (P, D) of a task's `points`, in order, and does not change with scale,
rotation or shift.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from harmonic_gpt.extras import require
from harmonic_gpt.studies.tasks import EQUIVALENCE_MODULUS, LAST_NODE, LATTICE_SIDE, symmetric_group

THRESHOLD, HOLD_EPOCHS = 0.9, 20  # of grokking, section 3


class Metric(NamedTuple):
    """A structure metric of one task and the direction in which it is better."""

    name: str
    function: Callable[[np.ndarray], float]
    higher_is_better: bool


def first_two_components(points: np.ndarray) -> np.ndarray:
    """(P, 2) projection on the first two principal components."""
    require("studies", "sklearn")
    from sklearn.decomposition import PCA

    return PCA(2, svd_solver="covariance_eigh").fit_transform(points.astype(np.float64))


def lattice_deviation(points: np.ndarray) -> float:
    """Mean relative difference of opposite sides over all true parallelograms of the lattice (code: lattice_metric). 0
    is perfect."""
    grid = [(i, j) for i in range(LATTICE_SIDE) for j in range(LATTICE_SIDE)]
    index = {place: i for i, place in enumerate(grid)}
    corners = []
    for a, b, c in combinations(grid, 3):
        d = (b[0] + c[0] - a[0], b[1] + c[1] - a[1])
        flat = (b[0] - a[0]) * (c[1] - a[1]) == (b[1] - a[1]) * (c[0] - a[0])
        if d in index and not flat:
            corners.append([index[p] for p in (a, b, d, c)])
    around = points[np.array(corners)].astype(np.float64)  # (parallelograms, 4 corners in order, D)
    ab, bd, dc, ca = np.linalg.norm(around - np.roll(around, -1, axis=1), axis=-1).T
    return float(np.mean(np.sqrt(((ab - dc) ** 2 + (ca - bd) ** 2) / ((ab**2 + bd**2 + dc**2 + ca**2) / 2))))


def circle_deviation(points: np.ndarray) -> float:
    """Standard deviation over mean of the radius in the first two components. 0 is a circle."""
    radius = np.linalg.norm(first_two_components(points), axis=1)
    return float(radius.std() / radius.mean())


def class_spread(points: np.ndarray) -> float:
    """Mean distance within an equivalence class over mean distance across classes. 0: classes are points; 1: no
    classes."""
    d = np.linalg.norm(points[:, None].astype(np.float64) - points[None], axis=-1)
    number = np.arange(len(points)) % EQUIVALENCE_MODULUS
    same = number[:, None] == number[None]
    return float(d[same & ~np.eye(len(points), dtype=bool)].mean() / d[~same].mean())


def generation_width(points: np.ndarray) -> float:
    """1 - share of the first component's variance within a generation, in the plane of the tree's first two components,
    averaged over generations of more than four nodes. 0: every generation is a line; 0.5 is the most."""
    require("studies", "sklearn")
    from sklearn.decomposition import PCA

    plane = first_two_components(points)
    generation = np.log2(np.arange(1, LAST_NODE + 1)).astype(int)
    widths = []
    for g in range(3, generation.max() + 1):
        shares = PCA().fit(plane[generation == g]).explained_variance_ratio_
        widths.append(1 - shares[0])
    return float(np.mean(widths))


def rotation_symmetry(points: np.ndarray) -> float:
    """1 / (1 + mean distance of a point to the nearest one after quarter turns), in the first two components scaled to
    a unit box (code: permutation_metric). 1 is symmetric."""
    plane = first_two_components(points)
    plane = (plane - plane.min(0)) / np.ptp(plane, axis=0)
    plane -= plane.mean(0)
    nearest = []
    for quarter_turns in (1, 2, 3):
        cos, sin = np.cos(quarter_turns * np.pi / 2), np.sin(quarter_turns * np.pi / 2)
        turned = plane @ np.array([[cos, sin], [-sin, cos]])
        nearest.append(np.linalg.norm(plane[:, None] - turned[None], axis=-1).min(1).mean())
    return float(1 / (1 + np.mean(nearest)))


def gap_deviation(points: np.ndarray) -> float:
    """Standard deviation over mean of the distances between consecutive numbers (code: greater_metric). 0: evenly
    spaced."""
    gaps = np.linalg.norm(np.diff(points.astype(np.float64), axis=0), axis=1)
    return float(gaps.std() / gaps.mean())


METRICS = {
    "in_context": Metric("lattice deviation", lattice_deviation, False),
    "modular_addition": Metric("circle deviation", circle_deviation, False),
    "equivalence": Metric("class spread", class_spread, False),
    "genealogy": Metric("generation width", generation_width, False),
    "permutations": Metric("rotation symmetry", rotation_symmetry, True),
    "greater_than": Metric("gap deviation", gap_deviation, False),
}


@cache
def coset_partitions() -> dict[str, np.ndarray]:
    """Labels (24,) of the left and right cosets of every proper nontrivial subgroup of S4."""
    elements = symmetric_group()
    index = {g: i for i, g in enumerate(elements)}
    product = np.array([[index[tuple(a[k] for k in b)] for b in elements] for a in elements])

    def generated(pair: tuple[int, int]) -> frozenset[int]:
        members = {index[(0, 1, 2, 3)], *pair}
        while True:
            larger = members | {int(product[a, b]) for a in members for b in members}
            if larger == members:
                return frozenset(members)
            members = larger

    # Two elements generate every subgroup of S4
    subgroups = {generated(pair) for pair in combinations(range(24), 2)} | {generated((i, i)) for i in range(24)}
    proper = sorted((sorted(s) for s in subgroups if 1 < len(s) < 24), key=lambda s: (len(s), s))
    partitions = {}
    for number, subgroup in enumerate(proper):
        for side, cosets in (("left", product[:, subgroup]), ("right", product[subgroup].T)):
            _, labels = np.unique(cosets.min(1), return_inverse=True)
            partitions[f"{side} cosets of subgroup {number}, order {len(subgroup)}"] = labels
    return partitions


def best_coset_silhouette(points: np.ndarray) -> tuple[float, str]:
    """Largest silhouette over the coset partitions (paper, appendix B), and the partition. The largest of many is above
    zero for random points too: compare with shuffled rows."""
    require("studies", "sklearn")
    from sklearn.metrics import silhouette_score

    scores = {name: float(silhouette_score(points, labels)) for name, labels in coset_partitions().items()}
    best = max(scores, key=lambda name: scores[name])
    return scores[best], best


def epochs_to_threshold(epochs: np.ndarray, accuracy: np.ndarray) -> float:
    """The first epoch from which accuracy stays above 0.9 for 20 epochs; NaN if none. epochs, accuracy: (checks,), NaN
    after the end."""
    measured = np.isfinite(epochs)
    epochs, above = epochs[measured], accuracy[measured] > THRESHOLD
    failures = epochs[~above]
    for start in epochs[above]:
        next_failure = failures[failures > start].min(initial=np.inf)
        if next_failure > start + HOLD_EPOCHS and epochs[-1] >= start + HOLD_EPOCHS:
            return float(start)
    return float("nan")
