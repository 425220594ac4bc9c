"""Cells on disk: what is loaded is what was measured, and what is there is not run again."""

from dataclasses import replace

import numpy as np
import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.studies import algorithmic
from harmonic_gpt.studies.batched import Cell, Member, Result, run
from harmonic_gpt.studies.report import report

CELL = Cell(
    "main.in_context.harmonic_mlp",
    "in_context",
    "mlp",
    "harmonic",
    tuple(Member(seed) for seed in range(5)),
    2,
    2e-3,
    1e-2,
    False,
)


@pytest.fixture
def early_result(monkeypatch):
    """Histories are slices where every model stopped before the last check."""
    result = run(CELL)
    histories = {
        key: np.stack([getattr(result, key), np.full_like(getattr(result, key), np.nan)], 2)
        for key in ("epochs", "train", "test", "norm")
    }
    cut = Result(result.embedding, result.test_accuracy, result.reason, **{k: v[..., 0] for k, v in histories.items()})
    assert not cut.epochs.flags.c_contiguous
    monkeypatch.setattr(algorithmic, "run", lambda cell: cut)
    return result


def test_a_cell_comes_back_as_it_was(early_result, tmp_path):
    algorithmic._run_and_save(tmp_path, CELL)
    cell, loaded, seconds = algorithmic.load(algorithmic.path_of(tmp_path, CELL))
    assert cell == CELL
    assert loaded.reason == early_result.reason
    for key in ("embedding", "test_accuracy", "epochs", "train", "test", "norm"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(early_result, key))
    assert set(seconds) == {"wall_seconds", "cpu_seconds"}


def test_report_of_one_cell(early_result, tmp_path):
    (tmp_path / "cells").mkdir()
    algorithmic._run_and_save(tmp_path / "cells", CELL)
    claims = report(str(tmp_path)).read_text()
    assert "5 models, " in claims
    assert "1 cells took" in claims
    assert "not measured" in claims
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 5


def test_other_settings_or_a_damaged_file_are_refused(early_result, tmp_path):
    algorithmic._run_and_save(tmp_path, CELL)
    with pytest.raises(InputError, match="other settings"):
        algorithmic._is_done(tmp_path, replace(CELL, epochs=3))
    algorithmic.path_of(tmp_path, CELL).write_bytes(b"half")
    with pytest.raises(InputError, match="not a finished cell"):
        algorithmic._is_done(tmp_path, CELL)


def exponents(protocols: list[str]) -> Cell:
    plan = algorithmic.cells(algorithmic.BUDGETS["quick"], ["in_context"], ["harmonic_mlp"], protocols)
    return next(cell for cell in plan if cell.name == "exponents.in_context.harmonic_mlp")


def test_the_sweep_leaves_to_the_main_setting_what_that_trains():
    assert {member.exponent for member in exponents(["clean", "paper"]).members} == {1, 3, 4, 6, 8, 10, 14, 20}
    at_2 = [member for member in exponents(["paper"]).members if member.exponent == 2]
    assert {member.protocol for member in at_2} == {"clean"}  # the main setting trains the leaking protocol alone


def test_a_sweep_of_an_earlier_version_is_done(tmp_path, monkeypatch):
    """It has three members that are now left to the main setting."""
    cell = exponents(["clean", "paper"])
    first = 5 * 2  # n = 1, both protocols
    twice = tuple(Member(seed, exponent=2.0) for seed in range(3))
    stored = replace(cell, members=cell.members[:first] + twice + cell.members[first:])
    monkeypatch.setattr(algorithmic, "load", lambda path: (stored, None, {}))
    algorithmic.path_of(tmp_path, cell).touch()
    assert algorithmic._is_done(tmp_path, cell)
    with pytest.raises(InputError, match="other settings"):
        algorithmic._is_done(tmp_path, replace(cell, members=cell.members[1:]))
    stored = replace(CELL, members=(*CELL.members, Member(5)))
    algorithmic.path_of(tmp_path, CELL).touch()
    with pytest.raises(InputError, match="other settings"):
        algorithmic._is_done(tmp_path, CELL)  # the main setting has to be the same


def test_unknown_names_and_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="unknown sums; expected some of in_context"):
        algorithmic.check_names("tasks", ["sums"], algorithmic.TASKS)
    with pytest.raises(InputError, match="no finished cell"):
        report(str(tmp_path))
