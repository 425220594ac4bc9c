"""What else a head is good for: each part on planted hidden states and centers."""

import numpy as np
import pytest
import torch
import uses


@pytest.fixture
def planted():
    """(states, labels) twice, centers, and dot products as logits: labels drawn from the logits' own probabilities."""
    torch.manual_seed(0)
    centers = torch.randn(12, 6)
    x = torch.randn(4000, 6)
    labels = torch.multinomial((x @ centers.T).softmax(-1), 1).squeeze(1)
    return (x[:2000], labels[:2000]), (x[2000:], labels[2000:]), centers


def test_a_temperature_mends_logits_that_are_too_sure(planted):
    first, second, centers = planted
    honest = uses.calibration(first, second, lambda x: x @ centers.T)
    assert honest["temperature"] == pytest.approx(1, rel=0.1)
    assert honest["error"] < 0.04
    assert honest["error"] == pytest.approx(honest["error_by_chance"], rel=0.5)
    sure = uses.calibration(first, second, lambda x: 1.8 * x @ centers.T)
    assert sure["temperature"] == pytest.approx(1.8, rel=0.1)
    assert sure["error"] > 2 * sure["error_after"]
    assert sure["error"] > 2 * sure["error_by_chance"]
    assert sure["nats_gained"] > 0
    assert uses.calibration_error(np.array([0.9] * 10), np.array([True] * 4 + [False] * 6), bins=1) == pytest.approx(
        0.5
    )


def test_rows_are_rounded_each_by_its_own_scale():
    rows = torch.tensor([[7.0, -3.0, 1.0], [0.07, 0.034, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[7.0, -3.0, 1.0], [0.07, 0.03, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(uses.quantized(rows, 4), expected)
    wide = torch.randn(50, 40)
    errors = [(uses.quantized(wide, bits) - wide).abs().max() for bits in (8, 4)]
    assert errors[0] < errors[1] / 10


def test_a_position_leaves_at_the_first_layer_that_is_sure_enough():
    unsure, sure, wrong = [0.0, 0.0, 0.1], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]
    last = torch.tensor([sure, sure, sure])
    layers = [torch.tensor([sure, unsure, wrong]), torch.tensor([sure, sure, sure])]
    readings = uses.exit_readings(layers, last, lambda x: x)
    found = uses.early_exit(readings, 0.9)
    assert found == {"confidence": 0.9, "left": 1.0, "agreement_of_those": 2 / 3, "blocks_saved": (2 + 1 + 2) / 9}
    assert uses.early_exit(readings, 0.9999)["agreement_of_those"] is None


def test_heads_of_different_confidence_leave_at_the_same_agreement():
    """An inner layer is right as often as it is confident, or has half that confidence: the threshold follows."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, (1, 40000))
    agree = rng.uniform(0, 1, (1, 40000)) < confidence
    honest, modest = (uses.confidence_for((scale * confidence, agree), 0.95) for scale in (1, 0.5))
    assert honest == pytest.approx(0.9, abs=0.02)  # those above it agree 0.95 times in the mean
    assert modest == pytest.approx(honest / 2, abs=0.01)
    saved = [uses.early_exit((s * confidence, agree), t)["blocks_saved"] for s, t in ((1, honest), (0.5, modest))]
    assert saved[0] == pytest.approx(saved[1], abs=0.01)
    one_wrong = np.append(confidence, 0.999)[None], np.append(agree, False)[None]  # the surest of all
    assert uses.confidence_for(one_wrong, 0.95) == pytest.approx(honest, abs=0.01)
    never = uses.confidence_for((confidence, np.zeros_like(agree)), 0.95)
    assert uses.early_exit((confidence, agree), never)["left"] < 0.01


def test_a_new_token_is_the_mean_of_its_contexts_where_centers_are_that():
    torch.manual_seed(0)
    centers, labels = torch.randn(12, 6), torch.randint(0, 12, (2000,))
    x = centers[labels] + 0.4 * torch.randn(2000, 6)

    def logits(x, w=centers):
        return -10 * torch.cdist(x, w).log()

    first, second = (x[:1000], labels[:1000]), (x[1000:], labels[1000:])
    quarters = [(x[part], labels[part]) for part in (slice(500), slice(500, 1000))]
    one, many = (uses.new_tokens(*quarters, second, centers, logits, k) for k in (1, 16))
    plain = uses.mean_nats(*second, logits)
    assert many["tokens"] == 12
    assert many["trained"] == pytest.approx(plain, abs=0.02)
    assert many["as_it_is"]["nats"] < many["trained"] + 0.05
    assert many["as_it_is"]["nats"] < one["as_it_is"]["nats"]
    assert many["best"]["scale"] == pytest.approx(1, rel=0.01)
    assert not many["best"]["at_end"]
    # By hand, for one token: its center replaced, and nothing else
    token, moved = int(torch.bincount(first[1]).argmax()), centers.clone()
    moved[token] = x[:1000][labels[:1000] == token][:16].mean(0)
    own = second[1] == token
    sides = uses._normalizers(*second, logits, torch.tensor([token]))
    nats, cost = uses._replaced(*sides, logits(second[0], moved[[token]]), torch.tensor([token]))
    assert nats == pytest.approx(uses.mean_nats(second[0][own], second[1][own], lambda x: logits(x, moved)), abs=1e-4)
    change = uses.mean_nats(*second, lambda x: logits(x, moved)) - plain
    assert cost == pytest.approx(change * len(own) / int(own.sum()), abs=1e-3)


def test_a_center_near_everything_wins_its_own_tokens_and_costs_the_others():
    torch.manual_seed(0)
    centers, labels = 0.25 * torch.randn(12, 6), torch.randint(0, 12, (2000,))
    x = 4 * centers[labels] + 0.4 * torch.randn(2000, 6)  # states four times as long as centers

    def logits(x, w=centers):
        return -20 * torch.cdist(x, w).log()

    parts = [(x[part], labels[part]) for part in (slice(500), slice(500, 1000), slice(1000, None))]
    found = uses.new_tokens(*parts, centers, logits, 16)
    assert found["as_it_is"]["nats"] < found["best"]["nats"]
    assert found["as_it_is"]["cost"] > found["best"]["cost"]
    assert found["best"]["scale"] < 0.5


def test_all_of_it_on_a_trained_model(train):
    _, state = train({"question": "q"})
    found = uses.uses(state.bare_model, state.data.tokens("val"), 600)
    assert set(found) == {"calibration", "quantized", "early_exit", "exit_at_agreement", "new_token"}
    assert abs(found["quantized"]["int8"]) < 0.01
    assert [row["contexts"] for row in found["new_token"]] == [1, 4, 16]
