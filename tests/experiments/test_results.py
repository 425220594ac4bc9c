"""Scaling, means and frontier from the rows that there are."""

import math

import results
from report import number_at

from tests.experiments.rows import row


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
    assert number_at(found, "uses.early_exit.1.left") == 0.2
    for path in ("uses.early_exit.2.left", "reading.lens_agreement", "uses.early_exit.1.left.more"):
        assert number_at(found, path) is None
