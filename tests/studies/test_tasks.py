import numpy as np
import pytest

from harmonic_gpt.studies.tasks import PROTOCOLS, SAMPLES, TASKS, leak, split, symmetric_group, task

# Distinct examples; a line of 5 points has 85 (a, b, c) with b + c - a on it
SIZES = {
    "in_context": 85**2,
    "modular_addition": 31**2,
    "equivalence": 1600,
    "genealogy": 125 + 123 + 124,
    "permutations": 576,
    "greater_than": 900,
}


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_distinct_and_in_the_vocabulary(name):
    t = task(name)
    assert len(t.labels) == SIZES[name] == len(np.unique(t.inputs, axis=0))
    tokens = np.append(t.inputs, t.labels)
    assert (tokens.min() >= 0) & (tokens.max() < t.vocab_size)
    assert set(t.points) <= set(range(t.vocab_size))


@pytest.mark.parametrize(
    ("name", "inputs", "label"),
    [
        ("in_context", (0, 1, 5), 6),  # (0,0) (0,1) (1,0) -> (1,1)
        ("in_context", (12, 18, 6), 12),
        ("modular_addition", (30, 5), 4),
        ("equivalence", (3, 38), 40),
        ("equivalence", (3, 39), 41),
        ("genealogy", (7, 127), 3),
        ("genealogy", (100, 128), 25),
        ("genealogy", (6, 129), 7),
        ("greater_than", (4, 3), 31),
        ("greater_than", (3, 3), 30),
    ],
)
def test_labels(name, inputs, label):
    t = task(name)
    (row,) = np.flatnonzero((t.inputs == inputs).all(1))
    assert t.labels[row] == label


def test_permutations_compose_right_to_left():
    elements, t = symmetric_group(), task("permutations")
    for (a, b), c in zip(t.inputs, t.labels, strict=True):
        assert elements[c] == tuple(elements[a][elements[b][i]] for i in range(4))


@pytest.mark.parametrize("name", TASKS)
def test_clean_split_has_no_leak(name):
    t = task(name)
    for fraction in (0.2, 0.8):
        train, test = split(t, "clean", fraction, seed=3)
        assert len(np.unique(np.concatenate([train, test]))) == len(train) + len(test) == min(SAMPLES, len(t.labels))
        assert abs(len(train) - fraction * (len(train) + len(test))) <= 1
        assert leak(t, train, test) == 0


def test_commuted_examples_stay_together():
    t = task("modular_addition")
    rows = {tuple(x): i for i, x in enumerate(t.inputs)}
    assert t.groups[rows[3, 8]] == t.groups[rows[8, 3]] != t.groups[rows[3, 9]]
    p = task("permutations")
    assert len(np.unique(p.groups)) == 576  # composition does not commute


def test_paper_protocol_leaks_as_much_as_expected():
    """1 - exp(-800/N), PAPER.md, when exchanged operands count as different."""
    t = task("modular_addition")
    shares = []
    for seed in range(20):
        train, test = split(t, "paper", 0.8, seed)
        assert (len(train), len(test)) == (800, 200)
        shares.append(np.isin(test, train).mean())
    assert np.mean(shares) == pytest.approx(1 - np.exp(-800 / 961), abs=0.02)
    train, test = split(task("permutations"), "paper", 0.8, 0)
    assert leak(task("permutations"), train, test) == 0
    assert len(train) + len(test) == 576


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_split_depends_on_its_seed_alone(protocol):
    t = task("genealogy")
    np.testing.assert_array_equal(split(t, protocol, 0.8, 1)[0], split(t, protocol, 0.8, 1)[0])
    assert not np.array_equal(split(t, protocol, 0.8, 1)[0], split(t, protocol, 0.8, 2)[0])
