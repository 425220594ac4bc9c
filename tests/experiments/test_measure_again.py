"""What is measured again reaches the rows of the same runs, and is never compared with what was measured before."""

from measure_again import with_measured

from tests.experiments.rows import row


def of(arm: str, key: str, question: str = "enough text", size: str = "2x64", **more) -> dict:
    old = {"uses": "old", "measured": {"rare": "old", "growth": []}}
    return row(arm, 10, 5.0, question) | {"key": key, "size": size, "set": {"eval.every": 100}} | old | more


def test_a_kept_run_is_the_same_one_and_others_of_its_size_are_withdrawn():
    kept = of("standard", "kept", "loss by frequency", set={"eval.every": 400}, trial={"watch_rare": 9})
    other_rate = of("standard", "other", set={"eval.every": 100, "optim.lr": 0.1})
    rows = [of("standard", "first"), kept, other_rate, of("harmonic", "ours"), of("standard", "large", size="2x128")]
    changed = with_measured(rows, "enough text", {"kept": {"uses": "new", "rare": "new"}})
    expected = {"first": "new", "kept": "old", "other": None, "ours": None, "large": "old"}
    assert {one["key"]: one.get("uses") for one in changed} == expected
    assert {one["key"]: one["measured"].get("rare") for one in changed} == expected
    assert all(one["measured"]["growth"] == [] for one in changed)
    assert rows[0]["uses"] == rows[0]["measured"]["rare"] == "old"


def test_what_is_not_measured_stays():
    (changed,) = with_measured([of("standard", "kept")], "enough text", {"kept": {"rare": "new"}})
    assert changed["uses"] == "old"
    assert changed["measured"] == {"rare": "new", "growth": []}
