"""Perplexity: every token but the first is a target exactly once, whatever the window, stride and batch."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokenizer import load_tokenizer, ordinary_encoder
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.likelihood import block_nats, unigram_nats


@pytest.fixture
def model(tiny_config):
    return HarmonicGPT2ForCausalLM(tiny_config()).double().eval()


def direct(model, ids, window, stride):
    """One target at a time, with the context that the window rule gives it."""
    total, end = 0.0, 0
    while end < len(ids) - 1:
        begin, end = end, min(end + (window if end == 0 else stride), len(ids) - 1)
        for target in range(begin + 1, end + 1):
            context = torch.from_numpy(ids[max(0, end - window) : target])[None]
            total -= model(context).logits[0, -1].log_softmax(-1)[ids[target]].item()
    return total


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("n", "window", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 8), (50, 8, 3), (51, 24, 12), (40, 8, 1), (50, 20, 20)]
)
def test_every_token_is_scored_once(model, n, window, stride, batch_size):
    ids = np.random.default_rng(0).integers(0, 101, n)
    result = perplexity(model, ids, window=window, stride=stride, batch_size=batch_size)
    assert result.tokens == n - 1
    with torch.no_grad():
        assert result.nats == pytest.approx(direct(model, ids, window, stride), rel=1e-9)
    assert result.perplexity == pytest.approx(math.exp(result.nats / (n - 1)))


def test_a_uniform_model_costs_log_v(tiny_config):
    model = HarmonicGPT2ForCausalLM(tiny_config(similarity="dot", normalization="softmax")).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, np.arange(90))
    assert result.nats_per_token == pytest.approx(math.log(101), rel=1e-5)
    assert result.bits_per_byte is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=32, n_layer=1, n_head=2, n_positions=24)),
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=101,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
            )
        ),
    ],
)
def test_other_architectures(make):
    model = make().double().eval()
    ids = np.random.default_rng(0).integers(0, 101, 60)
    with torch.no_grad():
        expected = direct(model, ids, 24, 12)
    assert perplexity(model, ids).nats == pytest.approx(expected, rel=1e-9)


def test_bytes_are_those_of_the_decoded_targets(tiny_config, token_folder):
    tokenizer = load_tokenizer(token_folder / "tokenizer")
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=len(tokenizer))).eval()
    text = "The cat sees the réd dog."
    ids = np.array([tokenizer.eos_token_id, *ordinary_encoder(tokenizer).encode(text).ids, tokenizer.eos_token_id])
    result = perplexity(model, ids, tokenizer=tokenizer)
    assert result.text_bytes == len(text.encode())
    assert result.bits_per_byte == pytest.approx(result.nats / math.log(2) / len(text.encode()))


def test_unigram_baseline(token_folder):
    folder = open_token_folder(token_folder)
    train, val = (folder.tokens(s).read(0, len(folder.tokens(s))) for s in ("train", "val"))
    p = (np.bincount(train, minlength=300) + 1) / (len(train) + 300)
    assert unigram_nats(folder, 10**9) == pytest.approx(-np.log(p[val]).mean())


def test_ignored_leading_targets_are_context_only(model):
    ids = torch.randint(0, 101, (2, 10))
    rest = block_nats(model, ids, ignore_leading=4)
    assert rest.item() == pytest.approx((block_nats(model, ids) - block_nats(model, ids[:, :5])).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.arange(1), {}, "at least 2 tokens"),
        (np.arange(200), {}, "token id 199 is beyond the model's vocabulary of 101"),
        (np.arange(50), {"window": 25}, "longer than the model's 24 positions"),
        (np.arange(50), {"stride": 30}, "stride: expected 1 to the window"),
    ],
)
def test_bad_input_is_named(model, ids, options, message):
    with pytest.raises(InputError, match=message):
        perplexity(model, ids, **options)
