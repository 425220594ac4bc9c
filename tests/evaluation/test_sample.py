"""Text from a model: reproducible, and never beyond its positions."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.sample import sample


def test_sampling(loaded):
    loaded.model.lm_head.weight.data.normal_()  # far from certain
    a, b = sample(loaded, "The cat", max_new_tokens=8, count=2)
    assert a.startswith("The cat")
    assert a != b
    assert sample(loaded, "The cat", max_new_tokens=8, count=2) == [a, b]
    assert sample(loaded, "", max_new_tokens=4, temperature=0)
    with pytest.raises(InputError, match="exceed the model's 160 positions"):
        sample(loaded, "The cat", max_new_tokens=160)
    loaded.tokenizer = None
    with pytest.raises(InputError, match="has no tokenizer"):
        sample(loaded, "The cat")
