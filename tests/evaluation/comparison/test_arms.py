"""Arms, as they are named on the command line, and what decides between two of them."""

import numpy as np
import pytest
from scipy import stats

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.arms import compare_arms, interval_kinds, parse_arms


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


def test_tasks_are_decided_over_runs_where_both_arms_have_several():
    replicates = np.linspace(-0.001, 0.001, 100)  # of each run: its words leave hardly any doubt

    def tasks(*arms: list[float]) -> dict:
        values = [value for arm in arms for value in arm]
        ratios = [{"level": (value, value + replicates), "apart": (i / 10, i / 10 + replicates)}
                  for i, value in enumerate(values)]  # fmt: skip
        members = {"a": list(range(len(arms[0]))), "b": list(range(len(arms[0]), len(values)))}
        measures = [{"nats": (3.0, np.empty(0))}] * len(values)
        seeds = list(range(len(values)))
        return compare_arms(members, measures, ratios, [{}] * len(values), seeds)["differences"][0]["tasks"]

    found = tasks([0.90, 0.80, 1.00], [0.95, 0.84, 1.03])  # the runs of one arm differ more than the arms do
    assert (found["over"], found["won"], found["lost"], found["undecided"]) == ("seeds", ["apart"], [], ["level"])
    assert found["method"] == "Welch, seeds differ"
    found = tasks([0.90], [0.95])  # with one run nothing is known of others
    assert (found["over"], found["won"]) == ("words and tokens of one run", ["apart", "level"])
    assert found["method"] is None
    assert tasks([0.90, 0.80], [0.95])["over"] == "words and tokens of one run"


def over_seeds(a: dict[int | None, float], b: dict[int | None, float], left_out: int | None = None) -> dict:
    """The difference of two arms, {seed: value} each in the order of the command line: of the validation loss, of a
    measure that the run `left_out` of the second arm lacks, and of a task of word pairs."""
    values = [*a.values(), *b.values()]
    measures = [{"nats": (value, np.empty(0)), "analogies": (value, np.empty(0))} for value in values]
    if left_out is not None:
        del measures[len(a) + left_out]["analogies"]
    tasks = [{"task": (value, np.empty(0))} for value in values]
    members = {"a": list(range(len(a))), "b": list(range(len(a), len(values)))}
    return compare_arms(members, measures, tasks, [{}] * len(values), [*a, *b])["differences"][0]


LOSSES = {1: 5.00, 2: 4.90, 3: 5.20}
OTHERS = {1: 5.02, 2: 4.93, 3: 5.22}  # further from each other than from LOSSES


def test_runs_are_paired_by_seed_whatever_their_order():
    expected = list(stats.ttest_rel(list(LOSSES.values()), list(OTHERS.values())).confidence_interval(0.95))
    for order in ([1, 2, 3], [3, 1, 2], [2, 1, 3]):
        found = over_seeds(LOSSES, {seed: OTHERS[seed] for seed in order})
        for row in (found["headlines"]["nats"], found["headlines"]["analogies"]):
            assert row["interval"] == pytest.approx(expected)
            assert (row["over"], row["method"]) == ("seeds", "paired by seed")
        assert found["headlines"]["nats"]["better"] == "a"
        assert (found["tasks"]["method"], found["tasks"]["won"]) == ("paired by seed", ["task"])


def test_runs_that_are_no_pairs_are_compared_by_welchs_t():
    a, b = list(LOSSES.values()), list(OTHERS.values())
    expected = list(stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95))
    for seeds, method in (([1, 2, 4], "Welch, seeds differ"), ([1, 2, None], "Welch, seeds not known")):
        found = over_seeds(LOSSES, dict(zip(seeds, b, strict=True)))
        row = found["headlines"]["nats"]
        assert row["interval"] == pytest.approx(expected)
        assert (row["over"], row["method"], row["better"]) == ("seeds", method, None)
        assert (found["tasks"]["method"], found["tasks"]["won"]) == (method, [])
    assert over_seeds(LOSSES, {1: 5.02, 2: 4.93})["headlines"]["nats"]["method"] == "Welch, seeds differ"
    measures = [{"nats": (value, np.empty(0))} for value in (5.0, 5.1, 5.2, 5.3)]
    twice = compare_arms({"a": [0, 1], "b": [2, 3]}, measures, [{}] * 4, [{}] * 4, [7] * 4)  # checkpoints of one run
    assert twice["differences"][0]["headlines"]["nats"]["method"] == "Welch, seeds repeat"


def test_a_measure_that_a_run_lacks_is_not_paired():
    rows = over_seeds(LOSSES, OTHERS, left_out=0)["headlines"]
    assert (rows["nats"]["method"], rows["analogies"]["method"]) == ("paired by seed", "Welch, seeds differ")
    assert interval_kinds(rows) == {"paired by seed": ["nats"], "Welch, seeds differ": ["analogies"]}


def test_one_pair_has_no_interval_over_seeds_and_equal_differences_have_no_nan():
    row = over_seeds({1: 5.0}, {1: 5.1})["headlines"]["nats"]
    assert (row["interval"], row["over"], row["method"], row["better"]) == (None, None, None, None)
    row = over_seeds({1: 5.0, 2: 4.0}, {2: 4.5, 1: 5.5})["headlines"]["nats"]
    assert (row["interval"], row["method"]) == ([-0.5, -0.5], "paired by seed")
