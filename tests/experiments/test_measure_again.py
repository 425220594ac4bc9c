"""What is measured again reaches the rows of the same runs, and is never compared with what was measured before."""

from measure_again import with_uses

from tests.experiments.rows import row


def of(arm: str, key: str, question: str = "enough text", size: str = "2x64", **more) -> dict:
    return row(arm, 10, 5.0, question) | {"key": key, "size": size, "uses": "old", "set": {"eval.every": 100}} | more


def test_a_kept_run_is_the_same_one_and_others_of_its_size_are_withdrawn():
    kept = of("standard", "kept", "loss by frequency", set={"eval.every": 400}, trial={"watch_frequencies": 9})
    other_rate = of("standard", "other", set={"eval.every": 100, "optim.lr": 0.1})
    rows = [of("standard", "first"), kept, other_rate, of("harmonic", "ours"), of("standard", "large", size="2x128")]
    found = {one["key"]: one.get("uses") for one in with_uses(rows, "enough text", {"kept": "new"})}
    assert found == {"first": "new", "kept": "old", "other": None, "ours": None, "large": "old"}
    assert rows[0]["uses"] == "old"
