"""The notebook: its cells run, and the outputs that it holds are of the code that it holds."""

import importlib
import json

import nbformat
import pytest
import yaml

from tests.test_docs import ROOT, broken_links, missing_names

make_notebook = importlib.import_module("docs.make_notebook")
make_reference = importlib.import_module("docs.make_reference")
# The quickstart's pair, small enough for seconds; vocabulary and text stay those of the quickstart
TINY = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
    "optim": {"warmup_steps": 2},
    "train": {"steps": 12, "batch_tokens": 512, "log_every": 5},
    "eval": {"every": 6, "tokens": 4096},
    "checkpoint": {"every": 12},
}


@pytest.fixture
def committed():
    return nbformat.read(make_notebook.NOTEBOOK, as_version=4)


def kinds_of_outputs(notebook) -> list[list[str]]:
    """Of each code cell, what its outputs are: streams, and the media types of data."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[output.get("name") or ", ".join(sorted(output.data)) for output in cell.outputs] for cell in cells]


def test_outputs_are_of_the_code(committed):
    assert committed.metadata[make_notebook.CODE_SHA256] == make_notebook.sha256_of(committed), (
        "cells have changed since they were run: python docs/make_notebook.py"
    )
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum("image/png" in kind for kinds in kinds_of_outputs(committed) for kind in kinds) == 6
    assert make_notebook.NOTEBOOK.stat().st_size < 600_000


def test_a_changed_cell_is_seen(committed):
    next(cell for cell in committed.cells if cell.cell_type == "code").source += "\n"
    assert committed.metadata[make_notebook.CODE_SHA256] != make_notebook.sha256_of(committed)


def test_what_the_notebook_imports_exists(committed):
    code = "\n".join(make_notebook.code_of(committed))
    assert "from harmonic_gpt.runs.load import load_model" in code
    assert not missing_names(code)


def test_links_of_the_notebook():
    assert not broken_links(make_notebook.NOTEBOOK)  # its JSON has them as they stand


def test_page_has_all_cells_and_outputs(committed):
    page = make_reference.notebook_page()
    for cell in committed.cells:
        assert cell.source in page
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<table>") == page.count("</table>") == 4


@pytest.mark.slow
def test_every_cell_runs(committed, tmp_path):
    (tmp_path / "configs").mkdir()
    for head in ("harmonic", "standard"):
        name = f"configs/quickstart_{head}.yaml"
        values = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        for section, changes in TINY.items():
            values[section] |= changes
        (tmp_path / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    run = nbformat.reads(json.dumps(committed), as_version=4)
    make_notebook.execute(run, tmp_path)  # raises where a cell does
    assert make_notebook.code_of(run) == make_notebook.code_of(committed)
    assert kinds_of_outputs(run) == kinds_of_outputs(committed)
    assert (tmp_path / "runs/quickstart-harmonic/latest").exists()
