"""Short names that tell things of the same name apart."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.names import distinct_names


def test_names_take_as_many_folders_as_tell_them_apart():
    steps = ["/r/exp1/harmonic/step-400", "/r/exp2/harmonic/step-400", "/r/exp2/standard/step-400", "gpt2"]
    assert distinct_names(["harmonic", "harmonic", "standard", "gpt2"], steps) == [
        "exp1/harmonic/step-400", "exp2/harmonic/step-400", "standard", "gpt2",
    ]  # fmt: skip
    assert distinct_names(["harmonic", "harmonic"], ["/a/x", "/b/y"]) == ["a/x", "b/y"]
    assert distinct_names(["x", "x"], ["/x", "x"]) == ["/x", "x"]
    assert distinct_names([], []) == []
    with pytest.raises(InputError, match="got /a/x more than once"):
        distinct_names(["x", "x"], ["/a/x", "/a/x"])
