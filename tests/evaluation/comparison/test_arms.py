"""Arms, as they are named on the command line, and what decides between two of them."""

import numpy as np
import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.arms import compare_arms, parse_arms


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
        return compare_arms(members, measures, ratios, [{}] * len(values))["differences"][0]["tasks"]

    found = tasks([0.90, 0.80, 1.00], [0.95, 0.84, 1.03])  # the runs of one arm differ more than the arms do
    assert (found["over"], found["won"], found["lost"], found["undecided"]) == ("seeds", ["apart"], [], ["level"])
    found = tasks([0.90], [0.95])  # with one run nothing is known of others
    assert (found["over"], found["won"]) == ("words and tokens of one run", ["apart", "level"])
    assert tasks([0.90, 0.80], [0.95])["over"] == "words and tokens of one run"
