"""The screening's table, verdicts and picture."""

import heads_report
import pytest
from queue_file import losses_of, read_searches

LOSSES = {"standard": 5.0, "quarter": 5.05, "harmonic": 5.2, "cosine_harmonic": 5.1}


def rows() -> list[dict]:
    """The first run of every arm's screening, and fresh seeds of four."""
    first = [one.runs[0] for one in read_searches(heads_report.QUEUE, {})]
    screening = [run | {"val_loss": LOSSES.get(run["arm"], 5.5)} for run in first]
    fresh = [
        run | {"question": "comparison", "seed": seed, "key": f"{run['arm']} {seed}", "reading": {"own_center": 0.25}}
        | {"val_loss": run["val_loss"] + seed / 100 + (run["arm"] == "harmonic") * seed / 1000}
        for run in screening
        for seed in (10, 11, 12)
        if run["arm"] in LOSSES
    ]  # fmt: skip
    standard = [run for run in fresh if run["arm"] == "standard"]
    worse = [run | {"question": "their baseline", "val_loss": run["val_loss"] + 0.3} for run in standard]
    return [*screening, *fresh, *worse]


def test_the_best_head_stands_first_beside_its_difference_to_standard():
    found = rows()
    lines = heads_report.table(found, read_searches(heads_report.QUEUE, losses_of(found))).splitlines()[2:]
    names = ["standard", "harmonic, r = 1/4", "cosine_harmonic", "harmonic, r = 1"]
    assert [line.split(" | ")[0][2:] for line in lines[:4]] == names
    assert lines[2].split(" | ")[3] == "+0.100 [+0.100, +0.100]"
    assert lines[3].split(" | ")[3].startswith("+0.211 [+0.2")
    assert lines[3].split(" | ")[-1] == "0.250 |"
    assert lines[4].endswith("|  |  |  |  |")  # no fresh seed


def test_claims_have_verdicts():
    lines = heads_report.claims(rows()).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["does not hold", "holds", "does not hold", "worse"]
    assert "distance, r = 1 |" in lines[1]
    assert "distance, r = 1/4 | does not hold | +0.050" in lines[2]
    assert "+0.300" in lines[3]
    assert heads_report.claims([]) == ""


@pytest.mark.parametrize(
    ("gaps", "expected"), [((0.1, 0.12, 0.1), "does not hold"), ((0.1, -0.1, 0.1), "no difference shown")]
)
def test_a_verdict_needs_an_interval_without_zero(gaps, expected):
    pairs = [(seed, 5 + gap, 5.0) for seed, gap in enumerate(gaps)]
    assert heads_report.verdict(pairs) == expected
    assert heads_report.verdict(pairs[:1]) == "no difference shown"


def test_the_cheapest_head_stands_first():
    rows = [
        {"head": head, "wall_ratio": ratio, "wall_quartiles": [1.0, 2.0]} for head, ratio in (("a", 1.5), ("b", 1.25))
    ]
    assert heads_report.costs(rows).splitlines()[2:] == ["| b | 1.250 [1.000, 2.000] |", "| a | 1.500 [1.000, 2.000] |"]


def test_the_picture_is_drawn(tmp_path):
    found = rows()
    heads_report.draw(found, read_searches(heads_report.QUEUE, losses_of(found)), tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 10_000
