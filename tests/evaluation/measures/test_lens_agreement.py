"""Planted trunks: layers that speak another language, layers that know nothing, layers that do nothing."""

import numpy as np
import pytest
import torch

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.evaluation.activations import final_residual, text_states
from harmonic_gpt.evaluation.measures.lens_agreement import LensAgreement, affine_map, answers_alone, lens_agreement

BLOCK, TOKENS = 32, 1025


@pytest.fixture
def model(tiny_config) -> HarmonicGPT2ForCausalLM:
    """Three blocks that each change the answer of most positions, and mix positions."""
    torch.manual_seed(0)
    config = tiny_config(vocab_size=50, n_layer=3, n_embd=16, n_positions=BLOCK, tie_word_embeddings=False)
    model = HarmonicGPT2ForCausalLM(config).eval()
    for name, parameter in model.transformer.h.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3 if "attn" in name else 0.1)
    return model


def measured(model, states=None, residual=None) -> LensAgreement:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50, TOKENS))
    with final_residual(model) as taken:
        read, _ = text_states(model, ids.numpy(), BLOCK)
    return lens_agreement(model, states or read, torch.cat(taken), ids[:-1], BLOCK)


def test_the_lens_is_the_models_own_head_on_every_layer(model):
    row = measured(model).row
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50, TOKENS))[:-1].view(-1, BLOCK)[16:]
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
        for layer in range(3):
            reading = model.lm_head(model.transformer.ln_f(out.hidden_states[layer]))
            agreement = (reading.argmax(-1) == out.logits.argmax(-1)).float().mean()
            kl = torch.nn.functional.kl_div(reading, out.logits, log_target=True, reduction="sum") / ids.numel()
            assert row["layers"][layer]["agreement"] == pytest.approx(agreement.item(), abs=1e-6)
            assert row["layers"][layer]["kl"] == pytest.approx(kl.item(), rel=1e-4)
            low, high = row["layers"][layer]["kl_interval"]
            assert low < row["layers"][layer]["kl"] < high
        alone = model(input_ids=ids[:1, 5:6], position_ids=torch.tensor([[5]])).logits[0, 0].argmax()
    assert answers_alone(model, ids.flatten(), BLOCK)[5] == alone


def test_a_tuned_lens_tells_another_language_from_not_knowing(model):
    """Layer 1 holds the last layer in a rotated basis; layer 2 holds nothing."""
    ids = np.random.default_rng(0).integers(0, 50, TOKENS)
    with final_residual(model) as taken:
        states, _ = text_states(model, ids, BLOCK)
    last = torch.cat(taken)
    torch.manual_seed(1)
    rotated = last @ torch.linalg.qr(torch.randn(16, 16))[0] + torch.randn(16)
    row = measured(model, [states[0], rotated, torch.randn_like(last), states[3]]).row
    _, knows, empty = row["layers"]
    assert knows["agreement"] < 0.3
    assert knows["tuned_agreement"] > 0.98
    assert knows["tuned_kl"] < 1e-3 < knows["kl"]
    assert max(empty["tuned_agreement"], empty["agreement"]) < 0.3
    a, b = affine_map(rotated, last)
    torch.testing.assert_close(rotated @ a + b, last, atol=2e-2, rtol=0)


def test_layers_that_do_nothing_agree_and_win_nothing(model):
    for block in model.transformer.h[1:]:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            torch.nn.init.zeros_(part.weight)
    row = measured(model).row
    assert [layer["agreement"] for layer in row["layers"][1:]] == [1, 1]
    assert [layer["idle"] for layer in row["layers"]] == [False, True, True]
    assert row["flag"] == "no inner layer that differs from the last one"
    for part in (model.transformer.h[0].attn.c_proj, model.transformer.h[0].mlp.c_proj):
        torch.nn.init.zeros_(part.weight)
    found = measured(model)
    assert [layer["agreement"] for layer in found.row["layers"]] == [1, 1, 1]
    assert (found.row["context_positions"], found.headlines) == (0, {})
    assert found.row["flag"] == "hardly any answer depends on the context"


def test_layers_that_do_nothing_lift_no_headline_of_those_that_work(model):
    whole = measured(model)
    for part in (model.transformer.h[2].attn.c_proj, model.transformer.h[2].mlp.c_proj):
        torch.nn.init.zeros_(part.weight)
    idle = measured(model)
    assert whole.row["counted_layers"] == [1, 2]
    assert idle.row["counted_layers"] == [1]
    assert idle.headlines["lens_agreement"][0] == idle.row["layers"][1]["context_agreement"] < 1
