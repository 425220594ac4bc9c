"""Arms, as they are named on the command line."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.arms import parse_arms


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
