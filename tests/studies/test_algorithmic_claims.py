"""Verdicts on the sweep of exponents: each setting counts once, and a verdict is what the numbers beside it say."""

import pytest

from harmonic_gpt.studies.algorithmic_claims import best_exponent, exponent_convention, note

ROW = {
    "kind": "main", "task": "modular_addition", "model": "harmonic_mlp", "seed": 0, "protocol": "clean",
    "fraction": 0.8, "exponent": 2.0, "weight_decay": 0.01, "epochs": 1200.0, "reason": "epochs",
}  # fmt: skip


def runs(exponent: float, shares: list[float], accuracy: float = 1.0, task: str = "modular_addition") -> list[dict]:
    """A row for each seed's share of the variance in two components: n = 2 in the main setting, others in the sweep."""
    base = ROW | {"exponent": exponent, "kind": "main" if exponent == 2 else "exponents", "task": task}
    return [
        base | {"seed": seed, "explained": [0.5, share, 1.0], "test_accuracy": accuracy}
        for seed, share in enumerate(shares)
    ]


def flat(count: int) -> list[float]:
    """Shares of five seeds of which `count` are flat."""
    return [1.0] * count + [0.9] * (5 - count)


def test_a_setting_that_was_trained_twice_counts_once():
    main = runs(2, flat(5))
    # One of the rows differs, as a run in another program of models did
    again = [row | {"kind": "exponents", "epochs": 1200.0 - row["seed"]} for row in main[:3]]
    rows = again + main + runs(1, flat(2))
    finding = exponent_convention(rows)
    assert finding.number == "flat: n = 2 on the distance (the code's 1) 5 of 5 seeds, n = 1 on it 2 of 5 (p = 0.17)"
    assert note(rows).startswith("10 models, ")
    # The sweep alone, of a study that has not finished its main setting, is used
    assert "3 of 3 seeds" in exponent_convention(again + runs(1, flat(2))).number


@pytest.mark.parametrize(
    ("at_2", "at_1", "p", "verdict"),
    [((5, 5), (5, 0), "0.033", "holds"), ((5, 4), (5, 2), "0.58", "partly"), ((5, 0), (5, 2), "0.65", "does not hold")],
)
def test_the_readings_of_n_are_compared(at_2, at_1, p, verdict):
    counts = ((2, at_2), (1, at_1))
    tasks = ("in_context", "modular_addition")
    rows = [
        row
        for n, both in counts
        for name, count in zip(tasks, both, strict=True)
        for row in runs(n, flat(count), task=name)
    ]
    finding = exponent_convention(rows)
    assert (finding.verdicts, f"(p = {p})" in finding.number) == ([verdict], True)
    assert exponent_convention([row for row in rows if row["exponent"] == 2]).verdicts == []


@pytest.mark.parametrize(
    ("accuracies", "shares", "verdict", "number"),
    [
        # Variances that print as the same number are level
        ((1.0, 1.0, 1.0), (0.9999, 0.9998, 0.9999), "partly",
         "best n on the distance: Modular addition 1, 2, 3 (level)"),
        ((0.5, 1.0, 1.0), (0.9, 0.9996, 0.9991), "partly",
         "best n on the distance: Modular addition 2, 3 (level)"),
        ((1.0, 1.0, 0.9), (1.0, 1.0, 1.0), "holds", "best n on the distance: Modular addition 1, 2 (level)"),
        ((0.5, 1.0, 1.0), (0.9, 1.0, 0.9), "holds", "best n on the distance: Modular addition 2"),
        ((0.5, 0.6, 1.0), (1.0, 1.0, 0.9), "does not hold",
         "Modular addition, test accuracy at n = 3 against 2: 1 against 0.6 (p = 0.004)"),
        ((1.0, 1.0, 1.0), (0.9, 0.9, 1.0), "does not hold",
         "Modular addition, variance in two components at n = 3 against 2: 1 against 0.9 (p = 0.004)"),
    ],
)  # fmt: skip
def test_the_best_exponent(accuracies, shares, verdict, number):
    rows = [
        row
        for n, accuracy, share in zip((1, 2, 3), accuracies, shares, strict=True)
        for row in runs(n, [share] * 5, accuracy)
    ]
    finding = best_exponent(rows)
    assert (finding.verdicts, finding.number) == ([verdict], number)


def test_a_sweep_without_its_main_setting_is_not_judged():
    assert best_exponent([row for n in (1, 3, 4) for row in runs(n, flat(5))]).verdicts == []
