"""Figures of the studies: drawing changes nothing of the caller's matplotlib."""

import matplotlib
import torch

from harmonic_gpt.studies import figures, row_figures


def test_drawing_leaves_the_backend_alone(tmp_path):
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        figures.digit_weights(tmp_path, "weights", {"class means": torch.rand(3, 16)})
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
    assert {path.name for path in tmp_path.iterdir()} == {"weights.png", "weights.svg"}


def test_rows_are_enough_for_the_figures_of_numbers(tmp_path, monkeypatch):
    """Tasks that no seed generalized in are left out of the grokking figure; with none left there is no figure. A
    setting that was trained twice is drawn once."""
    row = {
        "kind": "main", "protocol": "clean", "task": "modular_addition", "model": "harmonic_mlp", "fraction": 0.8,
        "exponent": 2.0, "seed": 0, "weight_decay": 0.01, "explained": [0.6, 0.9, 1.0],
        "test_accuracy": 0.5, "train_epochs": None, "test_epochs": None,
    }  # fmt: skip
    sweep = {key: value for key, value in row.items() if key != "explained"} | {"fraction": 0.4}
    row_figures.draw(tmp_path, [row, sweep])
    assert {path.stem for path in tmp_path.iterdir()} == {"figure3a_variance_clean", "figure3b_data_clean"}
    side = row | {"kind": "side", "model": "dot_harmax_mlp"}
    swept = [row | {"kind": "exponents", "exponent": n} for n in (1.0, 3.0)]
    row_figures.draw(tmp_path, [row | {"train_epochs": 20.0, "test_epochs": 50.0}, side, *swept])
    drawn = {path.stem for path in tmp_path.iterdir()}
    assert {"figure3c_grokking_clean", "heads", "figure13_exponents"} <= drawn
    seen = []
    monkeypatch.setattr(row_figures, "_exponents", lambda folder, name, rows: seen.extend(rows))
    row_figures.draw(tmp_path, [row | {"kind": "exponents"}, row, *swept])
    assert [(drawn["kind"], drawn["exponent"]) for drawn in seen] == [("main", 2), ("exponents", 1), ("exponents", 3)]
