"""Rare tokens: what a setting of the standard head reaches is held against harmonic's best setting."""

import certificates
import pytest
import trade

from tests.experiments.rows import row


def read(arm: str, loss: float, which: float, seed: int = 0, question: str = certificates.AT_BEST, **changes) -> dict:
    measured = {"rare": {"which": which, "which_other": 4.6}}
    settings = {"eval.every": 400, "optim.lr": 0.008, "optim.betas": [0.9, 0.999]} | changes
    found = {"key": f"{arm} {seed} {settings}", "size": "2x128", "set": settings, "measured": measured}
    return row(arm, seed, loss, question) | found


def rows(which_of_a_near_one: float) -> list[dict]:
    own, near = {"optim.eps": 1e-8}, certificates.CERTIFICATES["standard"]
    return [
        read("quarter", 5.0, 6.0),
        read("quarter", 5.1, 5.5, **{"optim.lr": 0.016}),
        read("quarter", 5.1, 6.5, **{"optim.eps": 1e-8}),
        read("quarter", 5.0, 5.2, seed=1),
        read("standard", 5.009, which_of_a_near_one),
        read("standard", 5.0, 6.2, **own),
        read("standard", 5.02, 5.0, question=near, **own, **{"optim.betas": [0.9, 0.99]}),
        read("standard", 5.02, 5.1, question=near, **own, **{"optim.lr": 0.016}),
    ]


@pytest.mark.parametrize(("which", "verdict"), [(6.1, "not as well as"), (5.9, "as well as")])
def test_a_setting_that_costs_too_much_does_not_count(which, verdict):
    text = trade.told(rows(which))
    assert f"(AdamW's eps 1e-05) tells them apart {verdict} r = 1/4" in text
    assert f"{which:.3f} against 6.000 nats" in text
    assert "Of 4 settings of the standard head 2 lose" in text
    assert "| standard | AdamW's beta2 0.99 | 5.020 | 5.000 | 4.600 |" in text
    assert trade.told(rows(which)[:4]) == ""
    assert trade.told([*rows(which), *rows(which)]) == text  # trained once more for something else


def test_the_chosen_settings_stand_first_and_a_picture_is_drawn(tmp_path):
    assert [(point.arm, point.changed) for point in trade.points(rows(6.1))][:2] == [
        ("quarter", trade.OWN),
        ("standard", trade.OWN),
    ]
    trade.draw(tmp_path / "trade.png", rows(6.1))
    assert (tmp_path / "trade.png").stat().st_size > 10_000
