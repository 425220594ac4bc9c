"""The algorithmic tasks of the paper (section 3) and the sixth of its code, as lists of all their distinct examples.

Two protocols make training and test sets of them. `paper` is the published code's: 1,000 draws with replacement, then a
split, so that test examples repeat training ones. `clean` splits distinct examples; those that say the same thing stay
on one side.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np

SAMPLES = 1000  # the code's number of draws; `clean` takes no more distinct examples than that
PROTOCOLS = ("clean", "paper")

LATTICE_SIDE = 5
MODULUS = 31
EQUIVALENCE_TOKENS, EQUIVALENCE_MODULUS = 40, 5
GREATER_TOKENS = 30
LAST_NODE = 126  # of a complete binary tree whose root is 1
PARENT, GRANDPARENT, SIBLING = 127, 128, 129


@dataclass(frozen=True, eq=False)
class Task:
    """All distinct examples of a task.

    inputs: (N, T) token ids. labels: (N,) token ids. groups: (N,), equal where one example follows from another by
    exchanging operands that commute. points: (P,) token ids whose embeddings have a structure to look for. replace:
    whether the code draws with replacement (it takes all permutations once).
    """

    name: str
    title: str
    vocab_size: int
    inputs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    points: np.ndarray
    replace: bool = True


def _task(name: str, title: str, vocab_size: int, examples: list[tuple], points, commutes=None, replace=True) -> Task:
    """`examples` are (token, ..., label); `commutes(inputs)` gives the representative of inputs that say the same
    thing."""
    table = np.array(examples, dtype=np.int64)
    representatives = [tuple(commutes(row) if commutes else row) for row in table[:, :-1].tolist()]
    ids = {key: i for i, key in enumerate(dict.fromkeys(representatives))}
    groups = np.array([ids[key] for key in representatives])
    return Task(name, title, vocab_size, table[:, :-1], table[:, -1], groups, np.asarray(points), replace)


def _in_context() -> Task:
    side = range(LATTICE_SIDE)
    line = [(a, b, c, b + c - a) for a, b, c in product(side, repeat=3) if b + c - a in side]
    examples = [
        tuple(LATTICE_SIDE * i + j for i, j in zip(row, column, strict=True)) for row in line for column in line
    ]
    return _task(
        "in_context",
        "In-context learning",
        LATTICE_SIDE**2,
        examples,
        range(LATTICE_SIDE**2),
        lambda x: (x[0], *sorted(x[1:])),
    )


def _modular_addition() -> Task:
    examples = [(a, b, (a + b) % MODULUS) for a, b in product(range(MODULUS), repeat=2)]
    return _task("modular_addition", "Modular addition", MODULUS, examples, range(MODULUS), sorted)


def _equivalence() -> Task:
    n = EQUIVALENCE_TOKENS
    examples = [(a, b, n if (a - b) % EQUIVALENCE_MODULUS == 0 else n + 1) for a, b in product(range(n), repeat=2)]
    return _task("equivalence", "Equivalence classes", n + 2, examples, range(n), sorted)


def _genealogy() -> Task:
    """The code also asks for the sibling of 126, whose answer is the token of the relation "parent"; here that fact is
    left out."""
    examples = []
    for node in range(2, LAST_NODE + 1):
        examples.append((node, PARENT, node // 2))
        if node >= 4:
            examples.append((node, GRANDPARENT, node // 4))
        if node ^ 1 <= LAST_NODE:
            examples.append((node, SIBLING, node ^ 1))
    return _task("genealogy", "Genealogy", SIBLING + 1, examples, range(1, LAST_NODE + 1))


def _permutations() -> Task:
    elements = symmetric_group()
    index = {element: i for i, element in enumerate(elements)}
    examples = [(i, j, index[tuple(a[k] for k in b)]) for (i, a), (j, b) in product(enumerate(elements), repeat=2)]
    return _task(
        "permutations", "Permutation composition", len(elements), examples, range(len(elements)), replace=False
    )


def _greater_than() -> Task:
    n = GREATER_TOKENS
    examples = [(a, b, n + 1 if a > b else n) for a, b in product(range(n), repeat=2)]
    return _task("greater_than", "Greater than", n + 2, examples, range(n))


def symmetric_group() -> list[tuple[int, ...]]:
    """The 24 elements of S4 in lexicographic order, the order of the tokens."""
    return list(permutations(range(4)))


_MAKERS = {
    "in_context": _in_context,
    "modular_addition": _modular_addition,
    "equivalence": _equivalence,
    "genealogy": _genealogy,
    "permutations": _permutations,
    "greater_than": _greater_than,
}
TASKS = tuple(_MAKERS)


@cache
def task(name: str) -> Task:
    return _MAKERS[name]()


def split(task: Task, protocol: str, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Example numbers (train, test); `fraction` of them train. Of a larger task `clean` takes SAMPLES distinct
    examples."""
    rng = np.random.default_rng(seed)
    total = len(task.labels)
    if protocol == "paper":
        drawn = rng.integers(total, size=SAMPLES) if task.replace else rng.permutation(total)
        cut = int(fraction * len(drawn))
        return drawn[:cut], drawn[cut:]
    rank = rng.permutation(task.groups.max() + 1)[task.groups]
    drawn = np.argsort(rank, kind="stable")[:SAMPLES]
    cut = int(fraction * len(drawn))
    while 0 < cut < len(drawn) and task.groups[drawn[cut]] == task.groups[drawn[cut - 1]]:
        cut += 1
    return drawn[:cut], drawn[cut:]


def leak(task: Task, train: np.ndarray, test: np.ndarray) -> float:
    """Share of test examples that were trained on, operands exchanged or not."""
    return float(np.isin(task.groups[test], task.groups[train]).mean())
