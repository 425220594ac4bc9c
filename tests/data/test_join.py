"""Several token folders as one."""

import json
import shutil

import numpy as np
import pytest

from harmonic_gpt.data import join as join_module
from harmonic_gpt.data.inspect import inspect_folder
from harmonic_gpt.data.join import join
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.training import loop
from tests.training.test_loop import assert_same_weights


@pytest.fixture(scope="module")
def other(corpus, token_folder, tmp_path_factory):
    """Ten new documents, and 30 of the corpus; split otherwise, so that some validation documents are training ones."""
    place = tmp_path_factory.mktemp("other")
    new = [json.dumps({"text": f"A new story, of number {i}."}) for i in range(10)]
    (place / "other.jsonl").write_text("\n".join([*new, *corpus.read_text().splitlines()[:30]]) + "\n")
    tokenizer = str(token_folder / "tokenizer")
    return prepare(str(place / "other.jsonl"), place / "out", tokenizer=tokenizer, validation_share=0.5)


def texts(folder, split):
    tokens = open_token_folder(folder).tokens(split)
    return [text.strip() for text in " ".join(map(str, tokens.read(0, len(tokens)))).split(" 299")[:-1]]


def test_a_joined_folder_is_its_parts_on_the_same_disk_blocks(token_folder, other, tmp_path, monkeypatch):
    monkeypatch.setattr(join_module, "CHECK_TOKENS", 100)  # documents over several windows
    out = join([token_folder, other], tmp_path / "out")
    folder = open_token_folder(out)
    for split in ("train", "val"):
        assert texts(out, split) == texts(token_folder, split) + texts(other, split)
        assert (out / f"{split}-00001.bin").stat().st_ino == (other / f"{split}-00000.bin").stat().st_ino
        assert list(folder.sources(split)) == ["docs.jsonl", "other.jsonl"]
    every = {split: texts(token_folder, split) + texts(other, split) for split in ("train", "val")}
    leaked = len(set(every["train"]) & set(every["val"]))
    assert leaked > 0
    assert folder.manifest["shared_documents"] == {
        "documents_of_an_earlier_folder": 30,
        "validation_documents_in_training": leaked,
    }
    note = f"{leaked} validation documents are also training documents, of the same folder or another"
    assert folder.manifest["notes"][0] == note
    inspection = inspect_folder(out, samples=1)
    assert inspection.problems == []
    assert inspection.splits["train"].documents == len(every["train"])
    twice = join([out, token_folder.parent / "folder" / "."], tmp_path / "twice", count_duplicates=False)
    assert open_token_folder(twice).manifest["shared_documents"] is None
    assert len(open_token_folder(twice).manifest["splits"]["train"]["files"]) == 3


def test_where_there_are_no_hard_links(token_folder, other, tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    out = join([token_folder, other], tmp_path / "out")
    assert (out / "val-00001.bin").resolve() == other / "val-00000.bin"
    open_token_folder(out).tokens("val")


def test_a_run_on_a_joined_folder_resumes_exactly(run_config, token_folder, other, tmp_path):
    out = join([token_folder, other], tmp_path / "out")
    assert loop.train(run_config(data__dir=out)) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "resumed", symlinks=True)
    shutil.rmtree(tmp_path / "resumed" / "step-000006")
    again = join([token_folder, other], tmp_path / "again")  # as on another machine
    assert loop.train(run_config(data__dir=again, run_dir=tmp_path / "resumed"), resume=True) == 0
    assert_same_weights(tmp_path / "run", tmp_path / "resumed")
    with pytest.raises(InputError, match="is not the data that"):
        loop.train(run_config(data__dir=other, run_dir=tmp_path / "resumed"), resume=True)


def test_what_cannot_be_joined_is_named_and_nothing_is_written(corpus, token_folder, other, tmp_path):
    stranger = prepare(str(corpus), tmp_path / "stranger", vocab_size=301, validation_share=0.2)
    bins = tmp_path / "bins"
    bins.mkdir()
    np.arange(9, dtype="<u2").tofile(bins / "train.bin")
    before = sorted(tmp_path.iterdir())
    for folders, out, message in (
        ([token_folder, stranger], "out", "stranger has vocab_size 301, not 300, as .*folder has"),
        ([token_folder, bins], "out", "nanoGPT's files do not say"),
        ([token_folder, other, token_folder], "out", "is given twice"),
        ([token_folder, tmp_path / "nowhere"], "out", "no token folder at"),
        ([token_folder, other], "stranger", "exists; name a new folder"),
        ([], "out", "no token folder is given"),
    ):
        with pytest.raises(InputError, match=message):
            join(folders, tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before


def test_another_tokenizer_of_the_same_size_is_refused(token_folder, other, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tokenizer"] = {"name": "stranger", "sha256": "0" * 64}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="copy has the tokenizer 'stranger', not 'trained byte-level BPE'"):
        join([token_folder, copy], tmp_path / "out")
