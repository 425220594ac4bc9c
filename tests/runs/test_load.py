"""Loading: what is the user's mistake, and what is not."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.training.setup import _saved_model

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError("Unable to allocate 7 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture
def folder(tmp_path):
    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


def fail_with(error):
    def fail(*_args, **_options):
        raise error

    return fail


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_is_not_the_users_mistake(folder, monkeypatch, error):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail_with(error))
    with pytest.raises(type(error)) as caught:
        load_model(folder)
    assert caught.value is error


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_device_without_room_is_not_the_users_mistake(folder, monkeypatch, error):
    monkeypatch.setattr(GPT2LMHeadModel, "to", fail_with(error))
    with pytest.raises(type(error)) as caught:
        load_model(folder)
    assert caught.value is error


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_nor_is_it_when_training_continues(tmp_path, monkeypatch, error):
    monkeypatch.setattr(HarmonicGPT2ForCausalLM, "from_pretrained", fail_with(error))
    with pytest.raises(type(error)) as caught:
        _saved_model(tmp_path)
    assert caught.value is error


def test_other_errors_are_and_keep_their_cause(folder, monkeypatch, tmp_path):
    error = RuntimeError("a shape does not fit\nand a long story")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail_with(error))
    monkeypatch.setattr(HarmonicGPT2ForCausalLM, "from_pretrained", fail_with(error))
    for load, argument in ((load_model, folder), (_saved_model, tmp_path)):
        with pytest.raises(InputError, match=r"a shape does not fit\)?$") as caught:
            load(argument)
        assert caught.value.__cause__ is error


def test_weights_are_known_by_the_file_that_was_loaded(folder):
    known = load_model(folder).weights_sha256
    loaded = load_model(folder).model
    torch.save({"not": "loaded"}, f"{folder}/pytorch_model.bin")
    assert load_model(folder).weights_sha256 == known
    Path(folder, "model.safetensors").unlink()
    hashes = []
    for _ in range(2):
        loaded.transformer.wte.weight.data += 1
        torch.save(loaded.state_dict(), f"{folder}/pytorch_model.bin")
        hashes.append(load_model(folder).weights_sha256)
    assert None not in hashes
    assert len({known, *hashes}) == 3


def test_an_unknown_device_is(folder):
    with pytest.raises(InputError, match="device 'cuda:77'") as caught:
        load_model(folder, "cuda:77")
    assert caught.value.__cause__ is not None
