"""Figures of the studies: drawing changes nothing of the caller's matplotlib."""

import matplotlib
import torch

from harmonic_gpt.studies import figures


def test_drawing_leaves_the_backend_alone(tmp_path):
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        figures.digit_weights(tmp_path, "weights", {"class means": torch.rand(3, 16)})
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
    assert {path.name for path in tmp_path.iterdir()} == {"weights.png", "weights.svg"}
