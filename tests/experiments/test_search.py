"""The search for a best setting: it ends where both neighbors are worse on every ladder, and asks for no more."""

import itertools
import random

import pytest
from search import search

SEEDS = [0, 1, 2]


def bowl(best, noise=0.0):
    """A loss over a grid, lowest at `best`."""

    def loss(point, seed):
        jitter = random.Random(f"{point} {seed}").gauss(0, noise)
        return 5 + 0.05 * sum(abs(a - b) for a, b in zip(point, best, strict=True)) + jitter

    return loss


def run(lengths, start, loss, seeds):
    """Train what the search asks for until it asks for nothing: the search and the number of runs."""
    known = {}
    while True:
        state = search(lengths, start, seeds, lambda point, seed: known.get((point, seed)))
        missing = [one for one in state.asked if one not in known]
        if not missing:
            return state, known
        assert missing == state.asked[-1:]  # one at a time
        known[missing[0]] = loss(*missing[0])


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 2, 4), (2, 1, 1)])
def test_the_best_is_found_and_its_neighbors_are_worse_with_every_seed(start):
    best = (2, 1, 3)
    state, known = run([4, 3, 5], start, bowl(best), SEEDS)
    assert (state.center, state.certified) == (best, 3)
    for axis, step in itertools.product(range(3), (-1, 1)):
        neighbor = (*best[:axis], best[axis] + step, *best[axis + 1 :])
        assert known[neighbor, 0] > known[best, 0]
    assert all(seed == 0 for _, seed in known)  # differences beyond the noise need no second seed


def test_neighbors_within_the_noise_get_as_many_seeds():
    state, known = run([4], (0,), bowl((2,), noise=0.002), [0])
    assert (state.center, state.certified) == ((2,), 1)
    flat = {((1,), 0): 5.001, ((1,), 1): 4.99, ((2,), 0): 5.0, ((2,), 1): 5.01, ((0,), 0): 6.0}
    state, known = run([3], (1,), lambda *at: flat[at], [0, 1])
    assert state.certified == 2
    assert state.center == (1,)  # ahead on the mean of two seeds, not on the first
    assert {at for at in known if at[0] == (0,)} == {((0,), 0)}


def test_a_search_does_not_go_round_in_circles():
    """Each of four settings is better than the one before: three by the mean of two seeds, one by far on the first."""
    first = {(0, 0): 5.0, (0, 1): 4.979, (1, 1): 4.989, (1, 0): 4.999}
    second = {(0, 1): 5.0, (1, 1): 4.98, (1, 0): 4.96, (0, 0): 4.94}
    state, _ = run([2, 2], (0, 0), lambda point, seed: (first, second)[seed][point], [0, 1])
    assert state.certified == 2


@pytest.mark.parametrize("salt", range(20))
def test_a_search_over_noise_ends(salt):
    def loss(point, seed):
        return random.Random(f"{salt} {point} {seed}").uniform(5, 5.03)

    state, known = run([4, 4, 4], (0, 3, 1), loss, SEEDS)
    assert state.certified == 3
    assert len(known) <= 64 * 3


SEARCH = {
    "question": "best",
    "search": {"times optim.lr": [0.5, 1, 2], "optim.eps": [1e-8, 1e-6]},
    "set": {"optim.eps": 1e-8},
    "arms": ["harmonic", "standard"],
    "seeds": [0, 1],
    "most": 9,
}
AFTER = {
    "question": "after",
    "tuned": ["best"],
    "arms": ["harmonic", "standard"],
    "seeds": [7],
    "set": {"times optim.lr": 3},
}


def worked(path, loss, most=100):
    """Work a queue without training: its runs in order, and what is known at the end."""
    import queue_file
    import run_queue

    rows = []
    while len(rows) < most:
        runs = queue_file.read_queue(path, queue_file.losses_of(rows))
        if not (left := run_queue.not_done(runs, rows)):
            break
        rows.append(left[0] | {"val_loss": loss(left[0])})
    return rows


def test_a_queue_searches_arm_by_arm_and_tunes_what_comes_after(queue):
    def loss(run):
        best = 0.02 if run["head"] == "harmonic" else 0.005
        return 5 + 10 * abs(run["settings"]["optim.lr"] - best) + 1e4 * run["settings"]["optim.eps"]

    path = queue(SEARCH, AFTER)
    rows = worked(path, loss)
    arms = [row["arm"] for row in rows if row["question"] == "best"]
    assert arms[:4] == ["harmonic", "standard"] * 2  # in turn
    after = [row for row in rows if row["question"] == "after"]
    assert after == rows[-2:]  # not before the search has ended
    assert [row["settings"]["optim.lr"] for row in after] == [0.06, 0.015]
    assert [row["set"]["optim.eps"] for row in after] == [1e-8, 1e-8]


def test_a_search_stops_at_its_most_runs(queue):
    import queue_file

    path = queue(SEARCH | {"most": 3}, AFTER)
    rows = worked(path, lambda run: 5 + 1e-6 * int(run["key"], 16) / 16**12)
    assert sum(row["question"] == "best" for row in rows) == 6
    assert sum(row["question"] == "after" for row in rows) == 2
    assert all(one.state.certified < 2 for one in queue_file.read_searches(path, queue_file.losses_of(rows)))


def test_a_search_that_starts_beside_its_ladder_is_a_mistake(queue):
    import queue_file
    import run_queue

    with pytest.raises(run_queue.InputError, match="beside a ladder"):
        queue_file.read_queue(queue(SEARCH | {"set": {"optim.eps": 0.5}}))


def test_a_row_without_reading_is_trained_again_where_it_is_to_be_read(queue):
    import queue_file
    import run_queue

    runs = queue_file.read_queue(queue({}, {"question": "read", "read": True}))
    assert [run["read"] for run in runs] == [True]  # one run answers both questions
    row = runs[0] | {"val_loss": 5.0}
    assert run_queue.not_done(runs, [row]) == runs
    assert run_queue.not_done(runs, [row, row | {"reading": {}, "uses": {}}]) == []
