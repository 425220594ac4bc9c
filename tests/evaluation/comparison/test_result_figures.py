"""Figures from results.json: who is ahead shows in color and side, and a control stands beside its measure."""

import pytest

from harmonic_gpt.evaluation.comparison.arms import HEADLINES, compare_arms
from harmonic_gpt.evaluation.comparison.result_figures import UNDECIDED, Read, forest, lens_agreement, paper_losses

COLORS = {"harmonic": "C0", "standard": "C1"}


def comparison(harmonic: dict[str, list[float]], standard: dict[str, list[float]]) -> dict:
    """Two arms of runs with these values of each measure."""
    runs = [
        {"nats": (4.0, [])} | {key: (values[i], []) for key, values in arm.items() if i < len(values)}
        for arm in (harmonic, standard)
        for i in range(max(map(len, arm.values())))
    ]
    count = max(map(len, harmonic.values()))
    arms = {"harmonic": list(range(count)), "standard": list(range(count, len(runs)))}
    return compare_arms(arms, runs, [{}] * len(runs), [{}] * len(runs), list(range(len(runs))))


def points(figure) -> dict[str, tuple[float, str]]:
    """{measure: (place, color)} of a forest plot."""
    axes = figure.axes[0]
    labels = [label.get_text().split(" ", 1)[0] for label in axes.get_yticklabels()]
    lines = [container.lines[0] for container in axes.containers]
    return {labels[int(line.get_ydata()[0])]: (line.get_xdata()[0], line.get_color()) for line in lines}


def test_a_measure_lies_on_the_side_and_has_the_color_of_who_is_ahead():
    measures = {
        "label_distance": [0.80, 0.81, 0.82],  # lower is better
        "lens_agreement": [0.60, 0.61, 0.62],
        "analogies": [0.1, 0.3, 0.5],
        "probes": [0.5],  # one run: no interval
    }
    other = {
        "label_distance": [0.90, 0.91, 0.92],
        "lens_agreement": [0.70, 0.71, 0.72],
        "analogies": [0.1, 0.3, 0.4],
        "probes": [0.4],
    }
    figure = forest(comparison(measures, other), COLORS)
    drawn = points(figure)
    assert set(drawn) == {"label", "lens", "analogies"}
    assert drawn["label"][0] > 1
    assert drawn["lens"][0] < -1
    assert 0 < drawn["analogies"][0] < 1
    assert [drawn[name][1] for name in ("label", "lens", "analogies")] == ["C0", "C1", UNDECIDED]
    told = [text.get_text() for text in figure.axes[1].texts]
    assert "+0.100 (no interval)" in told
    assert told.count("not measured") == len(HEADLINES) - 1 - 4  # the validation loss is no measure of reading


def test_nothing_to_draw():
    assert forest({}, COLORS) is None
    assert forest(comparison({"nats": [4.0]}, {"nats": [4.1]}), COLORS) is None
    assert lens_agreement({"Lens": [Read("C0", "a", [])]}) is None
    assert paper_losses([Read("C0", "a", [{"task": "t", "protocol": "strict", "loss": 1.0}])]) is None


def test_the_lens_is_drawn_with_and_without_intervals():
    rows = [{"layer": 0, "context_agreement": 0.5}, {"layer": 1, "context_agreement": 0.6}]
    rows[1] |= {"context_agreement_interval": [0.5, 0.8], "tuned_context_agreement": 0.7}
    axes = lens_agreement({"one": [Read("C0", "a", rows)], "two": [Read("C1", "b", rows[:1])]}).axes
    assert [list(c.lines[0].get_ydata()) for c in axes[0].containers] == [[0.5, 0.6], [0.7]]
    assert axes[1].get_title() == "two"


def test_the_papers_measure_stands_beside_its_control():
    row = {"task": "antonym", "protocol": "paper", "loss": 1.0, "shuffled_loss": 1.5}
    axes = paper_losses([Read("C0", "a", [row]), Read("C1", "b", [row | {"loss": 2.0}])]).axes[0]
    assert [float(line.get_xdata()[0]) for line in axes.lines] == pytest.approx([1.0, 1.5, 2.0, 1.5])
    assert {line.get_markerfacecolor() for line in axes.lines} == {"C0", "C1", "white"}
