"""What the neighbors of a best setting lose."""

import certificates
import pytest

from tests.experiments.rows import row

BEST = {"eval.every": 400, "optim.lr": 0.008, "optim.betas": [0.9, 0.999], "optim.weight_decay": 0.3}


def run(loss, question=certificates.AT_BEST, seed=0, **changes) -> dict:
    return row("quarter", seed, loss, question) | {"size": "2x128", "set": BEST | changes}


def neighborhood(gap: float) -> list[dict]:
    """A best setting, which another question asked for, and four neighbors."""
    rows = [run(5.0, question="frontier"), run(5.03, **{"optim.lr": 0.004}), run(5.01, **{"optim.betas": [0.9, 0.99]})]
    return [*rows, run(5.02, **{"optim.eps": 1e-8}), run(5.0 + gap, **{"optim.weight_decay": 0.15})]


def test_what_neighbors_lose():
    lines = certificates.neighbors(neighborhood(-0.01)).splitlines()
    assert lines[0] == "| setting | r = 1/4 |"
    assert "| AdamW's beta2 | **0.999** (0.99: +0.0100) |" in lines
    assert "| learning rate | **0.008** (0.004: +0.0300) |" in lines
    assert "| nats per token at the best, seed 0 | 5.0000 |" in lines
    assert lines[-1] == "|  | **a neighbor gains 0.0100**; 5 runs |"


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_setting_that_no_neighbor_beats(asked_for):
    rows = neighborhood(0.02) + ([run(5.0)] if asked_for else [])
    rows += [run(4.0, seed=1, **{"optim.lr": 0.016}), run(5.03, **{"optim.eps": 3e-5}) | {"trial": {"watch_rare": 9}}]
    for one in rows:
        one["set"] |= {"model.center_std": 0.1, "model.exponent": 48.0}  # std is no ladder of a head with an exponent
    rows += [run(5.03, **{"model.center_std": 0.1, "model.exponent": 68.0})]
    text = certificates.neighbors(rows)
    assert text.splitlines()[-1] == "|  | all 6 neighbors are worse; 7 runs |"
    assert "| AdamW's eps | **1e-05** (1e-08: +0.0200, 3e-05: +0.0300) |" in text


def test_a_neighbor_on_other_data_says_nothing():
    rows = neighborhood(0.02)[:-1]
    rows += [run(4.0, **{"optim.lr": 0.016, "data.dir": "data/other"})]
    rows += [run(4.0, **{"optim.lr": 0.016}) | {"trial": {"decay_to_length": 1.0}}]
    text = certificates.neighbors(rows)
    assert "0.016" not in text
    assert "not all neighbors are trained yet" in text
    assert certificates.neighbors(neighborhood(0.02)[:1]) == ""


def test_neighbors_at_another_size_are_of_what_was_asked_there():
    def at_large(loss, question="neighbors at 6x384", **changes):
        return run(loss, question=question, seed=10, **changes) | {"size": "6x384"}

    rows = [at_large(5.0, "enough text"), at_large(5.01, **{"optim.lr": 0.004}), at_large(4.998, **{"optim.lr": 0.016})]
    lines = certificates.neighbors(rows, {"quarter": certificates.AT_LARGEST}).splitlines()
    assert lines[2:] == [
        "| learning rate | **0.008** (0.004: +0.0100, 0.016: -0.0020) |",
        "| nats per token at the best, seed 10 | 5.0000 |",
        "|  | **a neighbor gains 0.0020**; 3 runs |",
    ]
    assert certificates.neighbors(rows) == ""


def test_each_arm_has_the_neighbors_of_its_own_best():
    def standard(loss, question, **changes):
        return run(loss, question, **changes) | {"arm": "standard", "head": "standard"}

    own = {"optim.eps": 1e-8}
    rows = [*neighborhood(0.02), standard(5.0, certificates.AT_BEST), standard(4.99, certificates.AT_BEST, **own)]
    rows += [
        standard(loss, certificates.CERTIFICATES["standard"], **own, **change)
        for loss, change in (
            (5.02, {"optim.lr": 0.004}),
            (5.01, {"optim.betas": [0.9, 0.99]}),
            (5.03, {"optim.weight_decay": 0.15}),
        )
    ]
    lines = certificates.neighbors(rows).splitlines()
    assert "| AdamW's eps | **1e-05** (1e-08: +0.0200) | **1e-08** (1e-05: +0.0100) |" in lines
    assert "| learning rate | **0.008** (0.004: +0.0300) | **0.008** (0.004: +0.0300) |" in lines
    assert lines[-1].endswith("| all 4 neighbors are worse; 5 runs |")
