"""A tiny model in memory, with the tokenizer of the tiny corpus."""

import pytest

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.runs.load import LoadedModel


@pytest.fixture
def loaded(tiny_config, token_folder) -> LoadedModel:
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300, n_positions=160))
    return LoadedModel("tiny", "memory", model.eval(), load_tokenizer(token_folder / "tokenizer"), None, None)
