"""Which data a run is evaluated on: its own, as they were, or those that are asked for."""

import shutil

import pytest

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.text import data_of


@pytest.fixture
def trained(loaded, token_folder, tmp_path, monkeypatch):
    """A model whose run was trained on ~/data."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = open_token_folder(shutil.copytree(token_folder, tmp_path / "data"))
    loaded.state = {"step": 1, "config": {"data": {"dir": "~/data"}}, "data": folder.fingerprint()}
    return loaded


def test_a_runs_own_data_are_found_in_the_home_folder_too(trained, tmp_path):
    assert data_of(trained, None).path == tmp_path / "data"
    assert data_of(trained, "~/data").path == tmp_path / "data"


def test_data_prepared_anew_are_not_the_runs_own(trained, corpus, token_folder, tmp_path):
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(InputError, match=r"no token folder at .*; or give --data FOLDER"):
        data_of(trained, None)
    prepare(str(corpus), tmp_path / "data", tokenizer=str(token_folder / "tokenizer"), validation_share=0.5)
    with pytest.raises(InputError, match=r"is not the data that memory was trained on.* --data "):
        data_of(trained, None)
    assert data_of(trained, "~/data").path == tmp_path / "data"
