"""Planted knowledge of rare tokens: which one comes counts, how much probability all of them get does not."""

import numpy as np
import pytest
import torch

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.evaluation.measures.rare_tokens import rare_tokens

COUNTS = np.array([0] * 5 + [3, 99] * 10 + [100, 5000] * 10)  # tokens 5 to 24 are rare
RARE = slice(5, 25)


@pytest.fixture
def planted(tiny_config):
    """A standard model whose last two dimensions are a constant and a direction that all rare tokens share."""
    torch.manual_seed(0)
    config = tiny_config(head="standard", vocab_size=45, n_embd=16, tie_word_embeddings=False, random_signs=False)
    model = HarmonicGPT2ForCausalLM(config).eval()
    centers = model.get_output_embeddings().weight.data
    centers.normal_()
    centers[:, -2:] = 0
    labels = torch.randint(0, 45, (2000,))
    last = torch.randn(2000, 16) + 2 * centers[labels]
    last[:, -1] = 1
    return model, last, labels


def measured(planted, counts=COUNTS):
    return rare_tokens(*planted, counts)


def test_which_is_the_loss_among_rare_tokens(planted):
    model, last, labels = planted
    found = measured(planted)
    rare = (labels >= 5) & (labels < 25)
    log_p = model.get_output_embeddings()(last[rare]).double().log_softmax(-1)
    own = log_p.gather(1, labels[rare, None])[:, 0]
    assert (found.row["targets"], found.row["share"]) == (int(rare.sum()), pytest.approx(rare.double().mean().item()))
    assert found.row["nats"] == pytest.approx(-own.mean().item(), rel=1e-5)
    assert found.headline[0] == found.row["which"]
    assert found.row["which"] == pytest.approx((log_p[:, RARE].logsumexp(1) - own).mean().item(), rel=1e-5)
    low, high = found.row["which_interval"]
    assert low < found.row["which"] < high


def test_a_shift_towards_rare_tokens_wins_nothing(planted):
    before = measured(planted).row
    planted[0].get_output_embeddings().weight.data[RARE, -1] += 3
    after = measured(planted).row
    assert after["nats"] < before["nats"] - 0.1
    assert after["which"] == pytest.approx(before["which"], rel=1e-5)


def test_knowing_frequencies_alone_is_the_control(planted):
    model, last, labels = planted
    centers = model.get_output_embeddings().weight.data
    centers.zero_()
    centers[:, -1] = torch.from_numpy(np.log(COUNTS + 1e-9))
    found = measured((model, last, labels)).row
    assert found["which"] == pytest.approx(found["control"], rel=1e-5)
    centers.zero_()
    assert measured((model, last, labels)).row["which"] == pytest.approx(np.log(20))  # a collapsed model's


def test_a_head_with_more_rows_than_the_tokenizer_has_tokens(planted):
    model, last, labels = planted
    labels = labels % 40  # the last five rows are padding
    found = measured((model, last, labels), COUNTS[:40])
    assert found.row["which"] == pytest.approx(measured((model, last, labels)).row["which"])


def test_few_rare_targets_are_flagged(planted):
    found = measured(planted, np.full(45, 100))
    assert (found.headline, found.row["targets"]) == (None, 0)
    assert found.row["flag"] == "fewer than 100 targets are rare"
