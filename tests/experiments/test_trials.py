"""Trials change what they say and nothing else."""

import pytest
import torch
import torch.nn.functional as F
import trials

from harmonic_gpt.errors import InputError
from harmonic_gpt.training import loop


def test_input_std_is_of_the_token_embedding_alone(run_config):
    run = loop.setup(run_config(model__tie_word_embeddings=False), resume=False)
    centers = run.bare_model.lm_head.weight.detach().clone()
    trials.apply_trial(run, {"input_std": 0.3})
    assert run.bare_model.transformer.wte.weight.std().item() == pytest.approx(0.3)
    assert run.bare_model.lm_head.weight.equal(centers)


def test_centers_decay_to_a_length(run_config):
    settings = {"model__tie_word_embeddings": False, "optim__weight_decay": 0.5, "optim__head_lr_scale": 2.0}
    run = loop.setup(run_config(**settings), resume=False)
    trials.apply_trial(run, {"decay_to_length": 0.7})
    centers = run.bare_model.lm_head.weight
    before = centers.detach().clone()
    for parameter in run.bare_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.optimizer.step()  # without a gradient only decay moves the centers
    (rate,) = [g["lr"] for g in run.optimizer.optimizer.param_groups if any(p is centers for p in g["params"])]
    lengths = before.norm(dim=1)
    torch.testing.assert_close(centers.norm(dim=1), lengths + rate * 0.5 * (0.7 - lengths))
    torch.testing.assert_close(F.cosine_similarity(centers, before), torch.ones(len(centers)))


def test_a_fixed_gain_stays_as_it_starts(train):
    _, run = train({"set": {"trial.fixed_gain": True}})
    norm, inner = run.bare_model.transformer.ln_f, run.bare_model.transformer.h[0].ln_1
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert not (inner.weight == 1).all()


def test_watching_growth_changes_nothing(train):
    plain, _ = train({})
    watched, run = train({"set": {"trial.watch_growth": 2}})
    rows = watched["measured"]["growth"]
    assert watched["val_loss"] == plain["val_loss"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["center_length"] == pytest.approx(run.bare_model.lm_head.weight.norm(dim=1).mean().item())
    assert rows[-1] == {"step": 6} | trials.lengths_and_logits(run)


def test_watching_rare_tokens_changes_nothing(train):
    plain, _ = train({})
    watched, run = train({"set": {"trial.watch_rare": 256}})
    block = run.config.model.n_positions
    found = watched["measured"]["rare"]
    assert watched["val_loss"] == plain["val_loss"]
    assert sum(found["targets"]) == (len(run.data.tokens("val")) - 256 - 1) // block * block
    assert found == trials.rare_words(run.bare_model, run.data, 256, block)


def test_an_unknown_trial_is_named():
    with pytest.raises(InputError, match=r"unknown trial smoothing.*input_std"):
        trials.apply_trial(None, {"smoothing": 0.1})
