"""Verdicts follow from the numbers by rules that are the same for every claim."""

import numpy as np
import pytest

from harmonic_gpt.studies.claims import Claim, combined, compare, write_claims

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


def test_what_does_not_hold_is_said_first(tmp_path):
    claims = [Claim("a", "1", "holds", "holds"), Claim("b", "2", "does not hold", "holds"), Claim("c", "3", "partly")]
    write_claims(tmp_path, "Title", claims, "note")
    rows = [
        line for line in (tmp_path / "claims.md").read_text().splitlines() if line.startswith(("| a ", "| b ", "| c "))
    ]
    assert rows == [
        "| b | 2 | **does not hold** | holds |",
        "| c | 3 | **partly** |  |",
        "| a | 1 | **holds** | the same |",
    ]
