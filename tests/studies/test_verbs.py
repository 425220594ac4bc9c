"""`python -m harmonic_gpt study ...` from what is typed to the files that are left."""

import pytest

from harmonic_gpt.__main__ import main
from harmonic_gpt.studies import algorithmic, toy
from harmonic_gpt.studies.algorithmic import Budget


def study(*arguments) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["study", *map(str, arguments)])
    return caught.value.code or 0


def test_toy(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.study, "__defaults__", (200,))  # steps
    assert study("toy", "--out", tmp_path / "toy", "--seeds", 3) == 0
    left = {path.name for path in (tmp_path / "toy").iterdir()}
    assert left == {"claims.md", "figure1_toy.png", "figure1_toy.svg"}


def test_digits(tmp_path, capsys):
    assert study("digits", "--out", tmp_path / "digits", "--seeds", 2, "--epochs", 2) == 0
    assert "standard: test accuracy" in capsys.readouterr().out
    left = {path.name for path in (tmp_path / "digits").iterdir()}
    assert left == {"claims.md", "digits_weights.png", "digits_weights.svg"}


@pytest.fixture
def tiny_budget(monkeypatch):
    budget = Budget({"mlp": 2, "transformer": 2}, 2, 3, 2, (0.4,), (1, 2, 4), ("in_context",), True)
    monkeypatch.setitem(algorithmic.BUDGETS, "quick", budget)


@pytest.mark.slow
def test_algorithmic_stops_continues_and_reports(tmp_path, tiny_budget, capsys):
    arguments = ("algorithmic", "--out", tmp_path / "out", "--tasks", "in_context", "--workers", 1)
    assert study(*arguments, "--models", "harmonic_mlp") == 0
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert {path.stem for path in cells} == {
        "main.in_context.harmonic_mlp",
        "exponents.in_context.harmonic_mlp",
    }
    capsys.readouterr()
    assert study(*arguments, "--models", "harmonic_mlp", "--models", "standard_mlp") == 0
    assert "2 done before" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())
    assert study("report", tmp_path / "out") == 0
    assert "claim of the paper" in capsys.readouterr().out
    assert (tmp_path / "out" / "figure2_representations_clean.svg").exists()


def test_bad_names_and_an_empty_folder(tmp_path, capsys):
    assert study("algorithmic", "--out", tmp_path, "--tasks", "sorting") == 2
    assert "expected some of in_context" in capsys.readouterr().err
    assert study("report", tmp_path / "nothing") == 2
    assert "holds no finished cell" in capsys.readouterr().err
