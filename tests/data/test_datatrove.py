"""Files of datatrove's DocumentTokenizer; `tests/interop/test_datatrove.py` has datatrove itself write them."""

import shutil

import numpy as np
import pytest

from harmonic_gpt.data.inspect import describe, inspect_folder
from harmonic_gpt.data.join import join
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.training import loop


def write_ds(file, documents, tokenizer="/somewhere/tokenizer.json"):
    """As datatrove 0.10 does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate([np.empty(0, "<u2"), *documents]).astype("<u2").tofile(file)
    ends = np.cumsum([len(ids) for ids in documents])
    ends.astype("<u8").tofile(f"{file}.index")
    (file.parent / f"{file.name}.metadata").write_text(f"{tokenizer}|2\n{ends[-1] if len(ends) else 0}\n6 T")


@pytest.fixture
def folder(token_folder, tmp_path):
    """The corpus as datatrove's tasks would leave it: two with documents, one without."""
    place = tmp_path / "trove"
    for split in ("train", "val"):
        tokens = open_token_folder(token_folder).tokens(split)
        ids = tokens.read(0, len(tokens))
        documents = np.split(ids, np.flatnonzero(ids == 299)[:-1] + 1)
        write_ds(place / split / "00000_unshuffled.ds", documents[:3])
        write_ds(place / split / "00001_unshuffled.ds", [])
        write_ds(place / split / "00002_unshuffled.ds", documents[3:])
    shutil.copytree(token_folder / "tokenizer", place / "tokenizer")
    return place


def test_it_is_opened_as_it_is(folder, token_folder, run_config, tmp_path, capsys):
    ours, theirs = open_token_folder(token_folder), open_token_folder(folder)
    for split in ("train", "val"):
        ids = [opened.tokens(split).read(0, 10**6) for opened in (ours, theirs)]
        assert np.array_equal(*ids)
        assert theirs.manifest["splits"][split]["documents"] == ours.manifest["splits"][split]["documents"]
    assert theirs.vocab_size == 300
    assert theirs.manifest["tokenizer"] == ours.manifest["tokenizer"] | {"name": "/somewhere/tokenizer.json"}
    inspection = inspect_folder(folder, samples=1)
    assert inspection.problems == []
    describe(inspection)
    assert "checked: all 4 files agree with their index" in capsys.readouterr().out
    config = run_config(data__dir=folder, train__steps=3)
    assert loop.train(config) == 0
    assert loop.train(config, resume=True) == 0


def test_a_joined_folder_of_it_has_checksums(folder, token_folder, tmp_path):
    out = join([folder], tmp_path / "out")
    assert open_token_folder(out).has_checksums
    assert inspect_folder(out).problems == []
    assert open_token_folder(out).manifest["shared_documents"]["documents_of_an_earlier_folder"] == 0
    both = open_token_folder(join([token_folder, folder], tmp_path / "both")).manifest["shared_documents"]
    assert both == {"documents_of_an_earlier_folder": 120, "validation_documents_in_training": 0}


def rewrite(file, change):
    ids = np.fromfile(file, "<u2")
    change(ids)
    ids.tofile(file)


def without_documents(folder):
    for split in ("train", "val"):
        for file in (folder / split).iterdir():
            file.unlink()
        write_ds(folder / split / "00000_unshuffled.ds", [])


DAMAGE = {
    "hold no document": without_documents,
    "no train tokens; it has val": lambda f: shutil.rmtree(f / "train"),
    "no .index: its task has not finished": lambda f: (f / "train/00002_unshuffled.ds.index").unlink(),
    "its index says": lambda f: (f / "train/00002_unshuffled.ds").write_bytes(b"1234"),
    "the ends of its documents do not rise": lambda f: np.zeros(3, "<u8").tofile(f / "train/00002_unshuffled.ds.index"),
    "no tokenizer; put the one": lambda f: shutil.rmtree(f / "tokenizer"),
    "made with several tokenizers: /other, /somewhere": lambda f: write_ds(f / "val/9.ds", [[1, 299]], "/other"),
    "has tokens of 4 bytes": lambda f: (f / "val/00000_unshuffled.ds.metadata").write_text("/somewhere|4\n1\n1"),
    "00000_unshuffled.ds: token id 300 at position 5": lambda f: rewrite(
        f / "train/00000_unshuffled.ds", lambda ids: ids.__setitem__(5, 300)
    ),
    "00002_unshuffled.ds: an end-of-text inside a document at position 7": lambda f: rewrite(
        f / "train/00002_unshuffled.ds", lambda ids: ids.__setitem__(7, 299)
    ),
    "00002_unshuffled.ds: no end-of-text at position": lambda f: rewrite(
        f / "train/00002_unshuffled.ds", lambda ids: ids.__setitem__(-1, 7)
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_is_wrong_with_it_is_found(folder, message, monkeypatch):
    monkeypatch.setattr("harmonic_gpt.data.tokens.CHECK_TOKENS", 1000)
    DAMAGE[message](folder)
    with pytest.raises(InputError, match=message):
        open_token_folder(folder).tokens("train")
