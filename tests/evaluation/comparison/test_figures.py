"""Figures: all there, in the colors of the project, and nothing of the caller's matplotlib changed."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from harmonic_gpt.evaluation.comparison import canvas, figures
from harmonic_gpt.evaluation.comparison.arms import compare_arms
from harmonic_gpt.evaluation.comparison.measure import Measured

FIGURES = (
    "loss_curves",
    "forest",
    "layers",
    "lens_agreement",
    "probes",
    "similarity",
    "explained_variance",
    "center_norms",
    "parallelograms_paper",
)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_twice_and_stands_in_the_report(full, name):
    assert Image.open(full.folder / f"{name}.png").size[0] > 600
    assert (full.folder / f"{name}.svg").stat().st_size > 5000
    assert f"({name}.png)" in (full.folder / "report.md").read_text()


def test_heads_keep_their_colors_whatever_the_order_of_the_arms():
    assert canvas.arm_colors({"s": "standard", "h": "harmonic"}) == {"s": "C1", "h": "C0"}
    several = canvas.arm_colors({"a": "harmonic", "b": "harmonic", "c": "dot + harmax", "d": "standard"})
    assert (several["a"], several["d"]) == ("C0", "C1")
    assert len(set(several.values())) == 4
    assert len(canvas.arm_colors({str(k): "harmonic" for k in range(12)})) == 12


def test_drawing_leaves_the_backend_and_pyplot_alone(tmp_path):
    """A name that would be mathematics to matplotlib, too."""
    row = {"head": "standard", "centers": {"norm_over_training": [[1, 1.0], [2, 1.5]]}}
    measured = Measured(row, [{"step": 1, "tokens": 10, "loss": 2.0}], np.array([0.5, 1.0]))
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        shown = figures.draw_all([measured], {"a_$\\frac{$": [0]}, {}, 1.0, tmp_path)
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
    assert [file for file, _ in shown] == ["loss_curves.png", "explained_variance.png", "center_norms.png"]


@pytest.mark.parametrize(("seeds", "method"), [([1, 2, 2, 1], "paired by seed"), ([1, 2, 3, 4], "Welch, seeds differ")])
def test_the_forests_caption_says_how_its_intervals_were_made(seeds, method, tmp_path):
    arms = {"harmonic": [0, 1], "standard": [2, 3]}
    measured = [
        Measured({"head": head, "centers": {"norm_over_training": []}}, [], np.array([0.5, 1.0]))
        for head, members in arms.items()
        for _ in members
    ]
    measures = [{"nats": (5.0, np.empty(0)), "own_center": (value, np.empty(0))} for value in (0.5, 0.6, 0.7, 0.5)]
    comparison = compare_arms(arms, measures, [{}] * 4, [{}] * 4, seeds)
    captions = dict(figures.draw_all(measured, arms, comparison, 1.0, tmp_path))
    assert f"with its 95 % interval ({method}). Grey:" in captions["forest.png"]
