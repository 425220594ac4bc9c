"""What weight decay does to lengths and logits, told from rows."""

import lengths

from tests.experiments.rows import row


def tried(arm, decay, rate=0.1, loss=5.0, question="certificate", **more) -> dict:
    chosen = {"set": {lengths.DECAY: decay, "optim.lr": rate}, "center_norms": [[100, 2.0, 0.1], [400, 1 + decay, 0.1]]}
    return row(arm, 0, loss, question) | chosen | more


def test_decay_is_told_where_nothing_else_changes():
    rows = [tried("harmonic", 0, loss=5.2), tried("harmonic", 0.3, loss=5.1), tried("harmonic", 0.3, 0.2)]
    text = lengths.along([*rows, tried("standard", 0, 0.1, 5.3)], size="2x64").splitlines()
    assert text[0] == "| weight decay | r = 1, loss | length of centers | standard, loss | length of centers |"
    assert text[2:] == ["| 0 | 5.200 | 1.00 | 5.300 | 1.00 |", "| 0.3 | 5.100 | 1.30 |  |  |"]


def test_a_setting_is_told_at_the_best_of_the_places_where_as_many_values_were_tried():
    rows = [tried("harmonic", decay, rate, loss) for rate, loss in ((0.1, 5.2), (0.2, 5.1)) for decay in (0, 0.3)]
    text = lengths.along([*rows, tried("harmonic", 0, 0.4, 4.0)], size="2x64").splitlines()
    assert text[2:] == ["| 0 | 5.100 | 1.00 |", "| 0.3 | 5.100 | 1.30 |"]
    assert lengths.along(rows, "optim.lr", size="2x64").splitlines()[0].startswith("| lr | r = 1, loss |")
    assert lengths.along(rows, questions=("another",)) == ""


def test_decay_to_a_length_stands_beside_the_same_decay_to_zero():
    pulled = tried("quarter", 0.3, loss=4.9, question="decay to a length, 4 epochs", trial={"decay_to_length": 1.0})
    pulled["settings"] = {"train.steps": 50}
    pulled["set"] |= {"eval.every": 400}  # how often it is evaluated changes no loss
    rows = [tried("quarter", 0, loss=5.2), tried("harmonic", 0.3, loss=5.3), tried("quarter", 0.3, 0.2), pulled]
    assert lengths.to_length(rows).splitlines()[2:] == ["| a sixteenth | r = 1/4 | 50 | 0.3 |  |  | 4.900 | 1.30 |"]
    rows.append(tried("quarter", 0.3, loss=5.1))
    assert lengths.to_length(rows).splitlines()[2].endswith("| 50 | 0.3 | 5.100 | 1.30 | 4.900 | 1.30 |")
    assert lengths.to_length(rows[:3]) == ""


def test_a_change_stands_beside_the_same_run_without_it():
    def run(question, loss, trial=None, **chosen):
        found = tried("quarter", 10, loss=loss, question=question, trial=trial or {})
        chosen = {"train.steps": 400} | chosen
        return found | {"set": found["set"] | chosen, "settings": chosen}

    plain = [run(lengths.LITTLE[0], 1.0, **{"optim.lr": 9}), run(lengths.LITTLE[0], 6.5, **{"model.exponent": 8})]
    confidence, gain = "confidence, 16 epochs", "fixed gain, 4 epochs"
    rows = [
        run(confidence, 6.1, **{"model.exponent": 4}),
        run(confidence, 6.2, **{"model.exponent": 8, "train.label_smoothing": 0.1}),
        run(confidence, 6.5, {"watch_growth": 50}, **{"model.exponent": 8}),
        run(gain, 6.0, {"fixed_gain": True}, **{"model.exponent": 8}),
        run(gain, 5.9, {"fixed_gain": True}, **{"model.exponent": 8, "train.steps": 300}),
    ]
    assert lengths.confidence(plain + rows).splitlines()[2:] == [
        "| a sixty-fourth | r = 1/4 | 4 | 10 | 0.1 | 400 | n = 4 | 6.500 | 6.100 |",
        "| a sixty-fourth | r = 1/4 | 8 | 10 | 0.1 | 400 | label smoothing 0.1 | 6.500 | 6.200 |",
        "| a sixteenth | r = 1/4 | 8 | 10 | 0.1 | 400 | gain fixed | 6.500 | 6.000 |",
        "| a sixteenth | r = 1/4 | 8 | 10 | 0.1 | 300 | gain fixed |  | 5.900 |",
    ]
    assert lengths.confidence(plain) == ""


def test_growth_is_told_and_drawn(tmp_path):
    looks = [{"step": step} | {key: float(step * (i + 1)) for i, key in enumerate(lengths.GROWN)} for step in (1, 2)]
    grown = tried("standard", 0.0, question=lengths.GROWTH, measured={"growth": looks})
    fixed = grown | {"trial": {"fixed_gain": True}}
    assert "| standard, gain fixed | 0 | length of centers |" in lengths.growth([grown, fixed], steps=(1, 2))
    lines = lengths.growth([grown, tried("standard", 0) | {"measured": {}}], steps=(1, 2)).splitlines()
    assert lines[0] == "| arm | weight decay | | 1 steps | 2 steps |"
    assert lines[2] == "| standard | 0 | length of centers | 1.00 | 2.00 |"
    assert lines[4] == "| standard | 0 | std of a position's logits | 3.00 | 6.00 |"
    lengths.draw_growth(tmp_path / "growth.png", [grown, grown | {"set": {lengths.DECAY: 0.3}, "arm": "quarter"}])
    assert (tmp_path / "growth.png").stat().st_size > 5000
