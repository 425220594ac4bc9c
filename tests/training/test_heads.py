"""Training heads other than the four of the ablation: what they learn, log, save, and when they stop."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from harmonic_gpt.errors import InputError
from harmonic_gpt.interop.card import Measurements, model_card
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import loop
from harmonic_gpt.training.optimizer import parameter_groups


def learning(run_config, head="harmonic", learn=("exponent", "hidden_scale", "prior"), **settings):
    return run_config(model__head=head, model__learn=json.dumps(list(learn)), model__prior="unigram", **settings)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_learned_is_logged_and_resumes_bit_by_bit(run_config, optimizer):
    config = learning(run_config, "mahalanobis_low_rank", optim__optimizer=optimizer, train__label_smoothing=0.1)
    loop.train(config)
    folder = loop.Path(config.run_dir)
    rows = [row for row in read_metrics(folder) if "head_exponent" in row]
    exponents = [row["head_exponent"] for row in rows]
    assert len(set(exponents)) == len(rows) == config.train.steps
    last = folder / f"step-{config.train.steps:06d}"
    model = load_model(str(last)).model
    assert model.lm_head.spec.exponent == pytest.approx(exponents[-1], rel=1e-6)
    assert model.lm_head.hidden_scale == pytest.approx(rows[-1]["head_hidden_scale"], rel=1e-6)
    assert model.lm_head.up.abs().max() > 0  # it has left the identity
    weights = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    loop.train(config, resume=True)
    assert (last / "model.safetensors").read_bytes() == weights
    card = model_card(load_model(str(last)), "tiny", Measurements("none")).content
    assert "**mahalanobis_low_rank** head" in card
    assert "Learned: exponent, hidden_scale, prior" in card


def test_nothing_of_the_head_but_its_centers_decays(run_config):
    run = loop.setup(learning(run_config, "mahalanobis_full", optim__head_lr_scale=2.0), resume=False)
    head = run.bare_model.lm_head
    decaying = {id(p) for g in parameter_groups(run.bare_model, 0.1, 2.0) if g["weight_decay"] for p in g["params"]}
    for name, parameter in head.named_parameters():
        assert (id(parameter) in decaying) == (name == "weight"), name
    everything = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(run.bare_model.parameters()))
    run.tracker.close()


def test_a_number_that_leaves_its_range_stops_the_run(run_config):
    run = loop.setup(learning(run_config), resume=False)
    run.bare_model.lm_head.log_exponent.data.fill_(math.log(2e5))
    with pytest.raises(FloatingPointError, match=r"step 1: the head's exponent is 199700; it must stay between"):
        loop.train_step(run)
    run.tracker.close()


def test_priors(run_config, tmp_path):
    run = loop.setup(run_config(model__prior="unigram"), resume=False)
    tokens = run.data.tokens("train")
    counts = np.bincount(tokens.read(0, len(tokens)), minlength=run.data.vocab_size) + 1.0
    expected = torch.from_numpy(np.log(counts / counts.sum())).float()
    head = run.bare_model.lm_head
    assert torch.equal(head.log_prior, expected)
    assert not isinstance(head.log_prior, torch.nn.Parameter)
    # With no distance to tell them apart all tokens have their prior
    head.weight.data.fill_(0.1)
    torch.testing.assert_close(run.bare_model(torch.arange(4)[None]).logits[0, 0], expected, rtol=1e-4, atol=1e-4)
    run.tracker.close()

    file = tmp_path / "shares.npy"
    np.save(file, np.arange(1, run.data.vocab_size + 1))
    other = loop.setup(run_config(run_dir=tmp_path / "other", model__prior=file), resume=False)
    assert other.bare_model.lm_head.log_prior.exp().sum().item() == pytest.approx(1)
    other.tracker.close()
    for values, message in ((np.ones(3), r"shape \(3,\), the data has 300"), (np.zeros(300), "not positive")):
        np.save(file, values)
        with pytest.raises(InputError, match=message):
            loop.setup(run_config(run_dir=tmp_path / "third", model__prior=file), resume=False)
    with pytest.raises(InputError, match='expected "unigram"'):
        loop.setup(run_config(run_dir=tmp_path / "third", model__prior="bigram"), resume=False)


def test_smoothing_and_z_loss_are_of_training_alone(run_config):
    run = loop.setup(run_config(train__label_smoothing=0.5, train__z_loss=0.1), resume=False)
    ids = torch.from_numpy(run.validation.read(0, 32).astype(np.int64))[None]
    trained, evaluated = (run.bare_model.train(mode)(ids, labels=ids).loss.item() for mode in (True, False))
    assert trained > evaluated + 0.1
    run.tracker.close()


def test_a_head_that_does_not_exist_is_named_before_the_data_are_read(run_config):
    with pytest.raises(InputError, match=r"model: .*did you mean cosine_harmonic"):
        loop.setup(run_config(model__head="cosine", data__dir="/nowhere"), resume=False)
