"""Verdicts follow from the numbers by rules that are the same for every claim."""

import numpy as np
import pytest

from harmonic_gpt.studies.claims import Claim, Comparison, claims_page, combined, compare, compare_counts, decisive

LOW, HIGH = np.array([0.1, 0.2, 0.3, 0.15, 0.25]), np.array([0.9, 0.8, 0.7, 0.85, 0.75])


@pytest.mark.parametrize(
    ("ours", "base", "higher_is_better", "verdict"),
    [
        (HIGH, LOW, True, "holds"),
        (LOW, HIGH, True, "does not hold"),
        (LOW, HIGH, False, "holds"),
        (HIGH, HIGH, True, "does not hold"),  # level is not better
        (HIGH[:2], LOW[:2], True, "partly"),  # two seeds show nothing
        (np.full(5, np.nan), LOW, False, "does not hold"),  # never reached is worst, whichever way is better
        (np.full(5, np.nan), LOW, True, "does not hold"),
    ],
)
def test_compare(ours, base, higher_is_better, verdict):
    result = compare(ours, base, higher_is_better)
    assert result.verdict == verdict
    assert 0 < result.p <= 1


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([], "not measured"),
        (["holds", "holds"], "holds"),
        (["does not hold", "does not hold"], "does not hold"),
        (["holds", "does not hold"], "partly"),
        (["holds", "partly"], "partly"),
    ],
)
def test_combined(verdicts, whole):
    assert combined(verdicts) == whole


def test_what_does_not_hold_is_said_first_and_details_are_folded():
    claims = [
        Claim("a", "holds", "1 (p = 0.01)", "more of a", "holds"),
        Claim("b", "does not hold", "2", "more of b", "holds"),
        Claim("c", "not measured", ""),
    ]
    page = claims_page("Title", claims, "note")
    assert [line for line in page.splitlines() if line.startswith(("| a ", "| b ", "| c "))] == [
        "| b | **does not hold** (leaking protocol: holds) | 2 |",
        "| a | **holds** | 1 (p = 0.01) |",
        "| c | **not measured** | - |",
    ]
    assert "Verdicts of 3 claims: does not hold 1, holds 1, not measured 1." in page
    folded = page.split("<details")[1:]
    assert [("more of b" in block, "more of a" in block) for block in folded] == [(True, False), (False, True)]
    assert page.count("</details>") == 2


def test_one_number_decides():
    strong, weak, against = (
        Comparison(2, 1, 0.01, "holds"),
        Comparison(2, 1, 0.2, "partly"),
        Comparison(1, 2, 0.3, "does not hold"),
    )
    worst = Comparison(0, 2, 0.01, "does not hold")
    assert decisive([]) == ""
    assert decisive([("x", strong)]) == "2 against 1 (p = 0.01)"
    assert decisive([("x", strong), ("y", weak)]).startswith("weakest of 2: y ")
    assert decisive([("x", worst), ("y", against), ("z", weak)]).startswith("weakest of 3: x ")
    assert decisive([("x", strong)] * 6) == "better in 6 of 6 (p = 0.031)"
    assert decisive([("x", strong)] * 5 + [("y", against)]) == "better in 5 of 6 (p = 0.22)"
    level = Comparison(1, 1, 1.0, "does not hold")
    assert decisive([("x", strong)] * 6 + [("y", level)]) == "better in 6 of 7 (p = 0.031)"  # for neither side


def test_counts_of_seeds_are_compared_exactly():
    assert compare_counts(0, 5, 5, 5) == pytest.approx(2 / 252)
    assert compare_counts(3, 5, 3, 5) == 1
