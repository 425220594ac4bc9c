"""A setting is certified where every neighbor is worse over both seeds."""

import certificates
import pytest

from tests.experiments.rows import row

BEST = {"eval.every": 400, "optim.lr": 0.008, "optim.betas": [0.9, 0.999], "optim.weight_decay": 0.3}


def run(seed, loss, arm="quarter", question=certificates.CERTIFICATE, **changes) -> dict:
    return row(arm, seed, loss, question) | {"size": "2x128", "set": BEST | changes}


def neighborhood(gap: float) -> list[dict]:
    """Both seeds of a best setting, which other questions asked for, and of three neighbors."""
    rows = [run(seed, 5.0 + seed, question="frontier") for seed in (0, 1)]
    rows += [run(seed, 5.03 + seed, **{"optim.lr": 0.004}) for seed in (0, 1)]
    rows += [run(seed, 5.01 + seed - 0.04 * seed, **{"optim.betas": [0.9, 0.99]}) for seed in (0, 1)]
    return rows + [run(seed, 5.0 + gap + seed, **{"optim.weight_decay": 0.15}) for seed in (0, 1)]


def test_what_neighbors_lose_is_the_mean_of_both_seeds():
    lines = certificates.neighbors(neighborhood(0.02)).splitlines()
    assert lines[0] == "| setting | r = 1/4 |"
    assert "| AdamW's beta2 | **0.999** (0.99: -0.0100) |" in lines
    assert "| learning rate | **0.008** (0.004: +0.0300) |" in lines
    assert "| nats per token at the best, mean of two seeds | 5.5000 |" in lines
    assert lines[-1] == "|  | **a neighbor gains 0.0100**; 8 runs |"


@pytest.mark.parametrize(("gap", "said"), [(0.02, "**certified**: 2 neighbors are worse"), (-0.01, "gains 0.0100")])
def test_certified_is_what_no_neighbor_beats(gap, said):
    rows = neighborhood(gap)
    for one in rows:  # beta2 is given, and not asked for
        if one["set"]["optim.betas"] != BEST["optim.betas"]:
            one["trial"] = {"another": 1}
        one["set"] = {name: value for name, value in one["set"].items() if name != "optim.betas"}
    assert said in certificates.neighbors(rows)


def test_a_neighbor_with_one_seed_or_other_data_says_nothing():
    rows = neighborhood(0.02)[:-1]
    rows += [run(seed, 4.0 + seed, **{"optim.lr": 0.016, "data.dir": "data/other"}) for seed in (0, 1)]
    rows += [run(seed, 4.0, **{"optim.lr": 0.016}) | {"trial": {"decay_to_length": 1.0}} for seed in (0, 1)]
    text = certificates.neighbors(rows)
    assert "weight decay" not in text.replace("| weight decay |  |", "")
    assert "0.016" not in text
    assert "not all neighbors are trained yet" in text
    assert certificates.neighbors(neighborhood(0.02)[:2]) == ""


def test_neighbors_at_another_size_have_one_seed_and_certify_nothing():
    def at_large(loss, question="neighbors at 6x384", **changes):
        return run(10, loss, question=question, **changes) | {"size": "6x384"}

    rows = [at_large(5.0, "enough text"), at_large(5.01, **{"optim.lr": 0.004}), at_large(4.998, **{"optim.lr": 0.016})]
    lines = certificates.neighbors(rows, "neighbors at 6x384").splitlines()
    assert lines[2:] == [
        "| learning rate | **0.008** (0.004: +0.0100, 0.016: -0.0020) |",
        "| nats per token at the best, seed 10 | 5.0000 |",
        "|  | **a neighbor gains 0.0020**; 3 runs |",
    ]
    assert "2 neighbors are worse" not in certificates.neighbors(rows, "neighbors at 6x384")
    assert "**certified" not in certificates.neighbors(rows[:2], "neighbors at 6x384")
    assert certificates.neighbors(rows) == ""
