"""Trials change what they say and nothing else."""

import pytest
import trials

from harmonic_gpt.errors import InputError
from harmonic_gpt.training import loop


@pytest.mark.parametrize(
    ("arm", "name", "value"),
    [
        ("harmonic", "learn_exponent", 0.0),
        ("harmonic", "anneal_exponent", [8.0, 8.0]),
        ("harmonic", "label_smoothing", 0.0),
        ("standard", "learn_temperature", 0.0),
    ],
)
def test_a_trial_that_changes_nothing_trains_the_same(train, arm, name, value):
    plain, _ = train({"arms": [arm]})
    tried, _ = train({"arms": [arm], "set": {f"trial.{name}": value}})
    assert tried["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)


def test_an_annealed_exponent_arrives(train):
    row, run = train({"set": {"trial.anneal_exponent": [4.0, 16.0]}})
    assert row["measured"]["exponent"] == run.bare_model.lm_head.spec.exponent == pytest.approx(16.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("arm", "name", "measure", "start"),
    [
        ("harmonic", "learn_exponent", "exponent", 8.0),
        ("standard", "learn_temperature", "temperature", 1.0),
        ("harmonic", "frequency_bias", "bias moved", 0.0),
    ],
)
def test_what_is_learned_moves_unless_its_rate_is_0(train, optimizer, arm, name, measure, start):
    def learned(lr_scale):
        row, _ = train({"arms": [arm], "set": {"optim.optimizer": optimizer, f"trial.{name}": lr_scale}})
        return row["measured"][measure]

    assert learned(0.0) == pytest.approx(start, rel=1e-6)
    once, twice = abs(learned(1.0) - start), abs(learned(2.0) - start)
    # AdamW's first updates are as long as the rate, 0.005, 0.01, 0.01, ...: of the logarithm of exponent or temperature
    assert 0.002 < once < 0.06 * max(start, 1.0)
    assert twice > 1.3 * once


def test_random_signs_are_of_the_last_gain(train):
    _, run = train({"set": {"trial.random_signs": True}})
    assert 0 < (run.bare_model.transformer.ln_f.weight < 0).sum() < 16


def test_input_std_is_of_the_token_embedding_alone(run_config):
    run = loop.setup(run_config(model__tie_word_embeddings=False), resume=False)
    centers = run.bare_model.lm_head.weight.detach().clone()
    trials.apply_trial(run, {"input_std": 0.3})
    assert run.bare_model.transformer.wte.weight.std().item() == pytest.approx(0.3)
    assert run.bare_model.lm_head.weight.equal(centers)


@pytest.mark.parametrize("head", [("euclidean", "harmax"), ("dot", "softmax")], ids=["harmonic", "standard"])
@pytest.mark.parametrize("trial", [{"frequency_start": 0.7}, {"frequency_bias": 1.0}], ids=lambda t: next(iter(t)))
def test_a_fresh_model_knows_the_frequencies(run_config, head, trial):
    settings = {"model__similarity": head[0], "model__normalization": head[1], "model__n_embd": 64}
    run = loop.setup(run_config(model__tie_word_embeddings=False, **settings), resume=False)
    log_share = trials._log_frequencies(run)
    assert log_share.exp().sum().item() == pytest.approx(1, rel=1e-4)
    before = loop.evaluate(run)["val_loss"]
    trials.apply_trial(run, trial)
    entropy = -(log_share.exp() * log_share).sum().item()
    assert abs(loop.evaluate(run)["val_loss"] - entropy) < 0.5 * abs(before - entropy)


def test_smoothing_is_of_training_alone(train):
    plain, _ = train({})
    row, run = train({"set": {"trial.label_smoothing": 0.5}})
    assert row["val_loss"] == loop.evaluate(run)["val_loss"] != plain["val_loss"]
    del run.bare_model.lm_head.forward  # the product's own loss
    assert row["val_loss"] == pytest.approx(loop.evaluate(run)["val_loss"], rel=1e-5)


def test_an_unknown_trial_is_named():
    with pytest.raises(InputError, match=r"unknown trial smoothing.*label_smoothing"):
        trials.apply_trial(None, {"smoothing": 0.1})
