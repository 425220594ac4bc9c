"""The results table: verdicts by the protocol's rule, negative ones first, and pages that cannot disagree with rows."""

import math

import pytest
import results

from tests.experiments.rows import row

BETTER, WORSE = [0.02, 0.03, 0.02, 0.03, 0.02], [-0.02, -0.03, -0.02, -0.03, -0.02]
P1, R1 = (next(one for one in results.HYPOTHESES if one.name == name) for name in ("P1", "R1"))


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
        (P1, [0.1, -0.1, 0.1, -0.1, 0.1], "no difference shown"),
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
    lines = results.verdicts(rows, "P", "R").splitlines()
    assert lines[0] == "| the harmonic head ... | arm | 2 x 64 |"
    assert [line.split(" | ")[0][2:4] for line in lines[2:]] == ["R1", "P2", "P1"]
    assert lines[2].endswith("| r = 1 | **does not hold**: -0.100 [-0.100, -0.100] |")
    assert lines[3].endswith("| **undecided** (1 of 5 seeds): +0.000 |")
    assert lines[4].endswith("| **holds**: -0.024 [-0.031, -0.017] |")
    assert "R1" not in results.verdicts(rows, "P")
    assert results.verdicts([], "P") == "No verdict yet: every hypothesis is undecided, 0 of 5 seeds."


def test_three_times_the_rate_is_held_against_the_same_seed_at_its_own_rate():
    rows = [row(arm, seed, 5.0 + seed) for arm in ("harmonic", "standard") for seed in range(5)]
    for seed in range(5):
        rows.append(row("harmonic", seed, 5.1 + seed + seed / 1000, question=results.THRICE))
        rows.append(row("standard", seed, 5.3 + seed, question=results.THRICE))
    (found,) = (one for one in results.outcomes(results.against_best(rows)) if one.hypothesis.name == "S2")
    assert [round(ours, 3) for _, ours, _ in found.pairs] == [0.1, 0.101, 0.102, 0.103, 0.104]
    assert found.verdict == "holds"
    assert all(
        ours == theirs for one in results.outcomes(rows) if one.hypothesis.name == "P1" for _, ours, theirs in one.pairs
    )


def test_scaling_is_a_line_over_widths_with_five_seeds():
    rows = []
    for width in (64, 128, 256):
        for seed in range(5):
            wiggle = 0.001 * (-1) ** seed
            size = {"size": f"2x{width}"}
            rows.append(row("standard", seed) | size)
            rows.append(row("harmonic", seed, 5.08 - 0.01 * math.log2(width) + wiggle) | size)
    text = results.scaling(results.by_width(rows)).splitlines()[-1]
    assert text.startswith("| r = 1 | 64, 128, 256 | -0.010 [")
    assert "**holds**" in text
    assert "| -0.016 [" in text
    assert results.scaling(results.by_width(rows[:-10])) == ""  # two widths


def test_more_seeds_make_no_line_surer_where_widths_do_not_lie_on_one():
    def told(seeds: int) -> str:
        gaps = {64: 0.02, 128: -0.01, 256: 0.01, 512: -0.02}
        pairs = {width: [(seed, 5 + gap, 5.0) for seed in range(seeds)] for width, gap in gaps.items()}
        return results.scaling({"r": pairs})

    assert told(2) == told(20)
    assert "**no difference shown**" in told(20)


def test_means_have_a_column_for_each_arm():
    rows = [
        row(arm, seed, lens_agreement=value + seed)
        for arm, value in (("standard", 1), ("quarter", 2))
        for seed in (0, 1)
    ]
    rows.append(row("quarter", 0, question="frontier", lens_agreement=100))
    measures = ("lens", "reading.lens_agreement"), ("not measured", "reading.own_center")
    text = results.differences(rows, measures, "quarter")
    assert text.splitlines()[0] == "| r = 1/4, standard: difference [95 %] | 2 x 64 |"
    assert text.splitlines()[2:] == ["| lens | 2.500, 1.500: +1.000 [+1.000, +1.000] (2 seeds) |"]
    assert results.differences(rows, measures[1:], "quarter") == ""


def test_a_point_keeps_the_geometry_only_if_it_reads_better_on_every_seed():
    def at(arm, seed, lens, label):
        return row(arm, seed, question="frontier", lens_agreement=lens, label_distance=label, own_center=0.5)

    rows = [at("standard", 0, 0.5, 0.9), at("standard", 1, 0.5, 0.9)]
    assert "no |" not in results.frontier(rows)
    better = [at("harmonic", 0, 0.6, 0.8), at("harmonic", 1, 0.6, 0.8)]
    assert "| 1/2 | 8 | 2 | +0.000 | 0.600 | 0.800 | 0.500 | yes |" in results.frontier(rows + better)
    assert "| no |" in results.frontier([*rows, better[0], at("harmonic", 1, 0.6, 0.95)])
    assert "| 1/2 |" not in results.frontier([rows[0], better[1]])  # another seed's standard head says nothing
    assert results.frontier([row()]) == ""


def test_a_number_is_found_by_its_path_or_was_not_measured():
    found = {"uses": {"early_exit": [{"left": 0.1}, {"left": 0.2}]}}
    assert results.number_at(found, "uses.early_exit.1.left") == 0.2
    for path in ("uses.early_exit.2.left", "reading.lens_agreement", "uses.early_exit.1.left.more"):
        assert results.number_at(found, path) is None


def test_every_hypothesis_asks_what_the_queue_trains():
    queue = results.QUEUE.read_text(encoding="utf-8")
    for hypothesis in results.HYPOTHESES:
        assert f"question: {hypothesis.question}\n" in queue


@pytest.mark.parametrize(("arm", "better", "gap"), [("quarter", "standard", -0.1), ("harmonic", "harmonic", 0.1)])
def test_verdicts_are_told_of_each_arm_at_its_best_eps(arm, better, gap):
    rows = [row(one, seed, 5.0 + seed) for one in (arm, "standard") for seed in range(5)]
    rows += [one | {"size": "2x128", "key": f"{one['key']} large", "val_loss": 6.0} for one in rows]
    # Worse on these seeds: what is told is not the better of the two
    at_best = [row(better, seed, 5.1 + seed, question=results.BETTER_EPS[better]) for seed in range(5)]
    for one in at_best:
        one["set"] = {"optim.eps": 1e-8}
    small, large = [one.pairs for one in results.outcomes(results.against_best(rows + at_best))]
    assert [round(ours - theirs, 3) for _, ours, theirs in small] == [gap] * 5
    assert all(ours == theirs for _, ours, theirs in large)  # trained with one eps there
    assert next(one.pairs for one in results.outcomes(results.against_best(rows)))[1] == (1, 6.0, 6.0)


def test_of_many_verdicts_those_stand_that_survive_holms_correction():
    rows = []
    for size, gaps in {
        "2x64": [-0.02, -0.021, -0.02, -0.021, -0.02],
        "2x128": [-0.01, -0.03, -0.01, -0.02, -0.04],
    }.items():
        rows += [row("standard", seed) | {"size": size} for seed in range(5)]
        rows += [row("quarter", seed, 5.0 + gap) | {"size": size} for seed, gap in enumerate(gaps)]
    rows += [
        row(arm, seed, 5.0 + seed % 2 * (arm == "quarter")) | {"size": "4x192"}
        for arm in ("standard", "quarter")
        for seed in range(5)
    ]
    text = results.corrected(rows)
    assert text.startswith("Of 3 verdicts on r = 1/4 over five seeds 2 intervals leave out zero")
    assert text.endswith("2 stand: r = 1/4 is ahead in P1 (2 x 64 and 2 x 128).")
    more = [one | {"size": f"3x{k}"} for k in range(8) for one in rows if one["size"] == "4x192"]
    assert "1 stand: r = 1/4 is ahead in P1 (2 x 64)" in results.corrected(rows + more)
    other = [one | {"arm": "harmonic"} for one in rows if one["arm"] == "quarter"]
    both = results.corrected(rows + other)
    assert "verdicts on r = 1 and r = 1/4 over" in both
    assert both.endswith("2 stand: r = 1 is ahead in P1 (2 x 64); r = 1/4 is ahead in P1 (2 x 64).")


def test_rare_tokens_are_held_against_the_standard_heads_setting_for_them():
    def of(arm, seed, which, question):
        return row(arm, seed, question=question) | {"measured": {"rare": {"which_after_fit": which}}}

    rows = [of("quarter", seed, 6.0, results.ENOUGH) for seed in range(5)]
    rows += [of("standard", seed, 6.2, results.ENOUGH) for seed in range(5)]
    rows += [of("standard", seed, 6.1, results.FOR_RARE) for seed in range(5)]
    found = {one.hypothesis.name: one.pairs[0] for one in results.outcomes(results.against_best(rows))}
    assert found["U9"] == (0, 6.0, 6.2)
    assert found["U10"] == (0, 6.0, 6.1)
