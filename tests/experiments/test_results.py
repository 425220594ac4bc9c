"""The results table: verdicts by the protocol's rule, negative ones first, and pages that cannot disagree with rows."""

import pytest
import results
import summary
from run_queue import losses_of, read_searches

from harmonic_gpt.files import read_jsonl

BETTER, WORSE = [0.02, 0.03, 0.02, 0.03, 0.02], [-0.02, -0.03, -0.02, -0.03, -0.02]
P1, R1 = results.HYPOTHESES[0], results.HYPOTHESES[3]


def row(arm="harmonic", seed=10, loss=5.0, question="enough text", **reading) -> dict:
    settings = {"model.center_std": 0.1, "model.hidden_scale": 0.2, "model.exponent": 8.0}
    start = {
        "key": f"{arm} {seed} {question} {reading}",
        "question": question,
        "size": "2x64",
        "arm": arm,
        "seed": seed,
    }
    head = "standard" if arm == "standard" else "harmonic"
    start |= {"arm": arm, "head": head, "set": {}, "trial": {}, "settings": settings, "val_loss": loss}
    return start | ({"reading": reading} if reading else {})


def pairs(gaps):
    return [(seed, 5.0 + gap, 5.0) for seed, gap in enumerate(gaps)]


@pytest.mark.parametrize(
    ("hypothesis", "gaps", "expected"),
    [
        (P1, WORSE, "holds"),  # a lower loss
        (P1, BETTER, "does not hold"),
        (R1, BETTER, "holds"),
        (R1, WORSE, "does not hold"),
        (P1, [0.002, 0.003, 0.002, 0.003, 0.002], "level"),  # within 0.01, though the interval leaves out zero
        (R1, [0.002, 0.003, 0.002, 0.003, 0.002], "holds"),
        (P1, [0.1, -0.1, 0.1, -0.1, 0.1], "undecided"),
        (P1, WORSE[:4], "undecided"),
        (P1, [], "undecided"),
    ],
)
def test_a_verdict_needs_five_seeds_and_an_interval(hypothesis, gaps, expected):
    assert results.verdict(hypothesis, pairs(gaps)) == expected


def test_negative_results_stand_first_and_what_is_missing_is_said():
    lenses = {"harmonic": 0.6, "standard": 0.7}
    rows = [
        row(arm, 10 + i, 5.0 - (gap if arm == "harmonic" else 0), lens_agreement=lens + gap / 10)
        for arm, lens in lenses.items()
        for i, gap in enumerate(BETTER)
    ]
    rows += [row(arm, 10, question="scarce text, 4 epochs") for arm in lenses]
    lines = results.verdicts(rows).splitlines()[2:]
    assert [line.split(" | ")[0][2:4] for line in lines] == ["R1", "P2", "P1"]
    assert "| does not hold | -0.1000" in lines[0]
    assert "| undecided: 1 of 5 seeds | +0.0000 |" in lines[1]
    assert "| holds | -0.0240 [-0.0308, -0.0172] |" in lines[2]
    assert results.verdicts([]) == "No verdict yet: every hypothesis is undecided, 0 of 5 seeds."


def test_a_point_keeps_the_geometry_only_if_it_reads_better_on_every_seed():
    def at(arm, seed, lens, label):
        return row(arm, seed, question="frontier", lens_agreement=lens, label_distance=label, own_center=0.5)

    rows = [at("standard", 0, 0.5, 0.9), at("standard", 1, 0.5, 0.9)]
    assert "no |" not in results.frontier(rows)
    better = [at("harmonic", 0, 0.6, 0.8), at("harmonic", 1, 0.6, 0.8)]
    assert "| 0.5 | 8 | 2 | 5.0000 | 0.6000 | 0.8000 | 0.5000 | yes |" in results.frontier(rows + better)
    assert "| no |" in results.frontier([*rows, better[0], at("harmonic", 1, 0.6, 0.95)])
    assert "| undecided |" in results.frontier([rows[0], *better])
    assert results.frontier([row()]) == ""


def test_the_pages_say_what_the_rows_say():
    rows = read_jsonl(summary.FILES / "protocol.jsonl")
    text = results.results(rows, read_searches(results.QUEUE, losses_of(rows)))
    with_it = [page for page in summary.pages() if "<!-- protocol, made by" in page.read_text(encoding="utf-8")]
    assert with_it
    for page in with_it:
        found = page.read_text(encoding="utf-8")
        assert f"\n{text}\n" in found, f"{page}: python experiments/summary.py --write"


def test_a_number_is_found_by_its_path_or_was_not_measured():
    found = {"uses": {"early_exit": [{"left": 0.1}, {"left": 0.2}]}}
    assert results.number_at(found, "uses.early_exit.1.left") == 0.2
    for path in ("uses.early_exit.2.left", "reading.lens_agreement", "uses.early_exit.1.left.more"):
        assert results.number_at(found, path) is None


def test_every_hypothesis_asks_what_the_queue_trains():
    queue = results.QUEUE.read_text(encoding="utf-8")
    for hypothesis in results.HYPOTHESES:
        assert f"question: {hypothesis.question}\n" in queue
