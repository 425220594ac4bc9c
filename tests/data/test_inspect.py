"""What `inspect` counts, shows and finds wrong."""

import json
import shutil

import numpy as np

from harmonic_gpt.data.inspect import inspect_folder
from harmonic_gpt.data.tokens import open_token_folder


def test_counts_are_those_of_the_documents(token_folder, corpus):
    inspection = inspect_folder(token_folder, samples=2)
    assert inspection.problems == []
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert sum(report.documents for report in inspection.splits.values()) == len(texts)
    folder = open_token_folder(token_folder)
    for name, report in inspection.splits.items():
        ids = folder.tokens(name).read(0, 10**9)
        lengths = np.diff(np.flatnonzero(ids == folder.manifest["end_of_text"]), prepend=-1) - 1
        assert (report.shortest, report.longest) == (lengths.min(), lengths.max())
        assert (report.tokens, report.documents) == (len(ids), len(lengths))
        assert report.text_bytes == folder.manifest["splits"][name]["text_bytes"]
        assert len(inspection.samples[name]) == 2
        assert all(any(text.startswith(sample) for text in texts) for sample in inspection.samples[name])


def test_windows_do_not_cut_documents(tmp_path, monkeypatch):
    """Documents of 3, 0 and 4 tokens, and a rest without an end, read three tokens at a time."""
    monkeypatch.setattr("harmonic_gpt.data.inspect.WINDOW", 3)
    end = 50256
    np.array([1, 2, 3, end, end, 1, 2, 3, 4, end, 7, 7], "<u2").tofile(tmp_path / "train.bin")
    np.array([1, 2], "<u2").tofile(tmp_path / "val.bin")
    inspection = inspect_folder(tmp_path)
    train, val = inspection.splits["train"], inspection.splits["val"]
    assert (train.tokens, train.documents, train.shortest, train.longest) == (12, 3, 0, 4)
    assert (val.documents, val.shortest, val.longest) == (0, None, None)
    assert (train.text_bytes, inspection.samples) == (None, {})


def test_what_is_wrong_is_found(token_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(token_folder, copy)
    file = copy / "train-00000.bin"
    ids = np.fromfile(file, "<u2")
    ids[5], ids[-1] = 999, 0  # beyond the vocabulary; the last document has no end
    ids.tofile(file)
    documents = json.loads((copy / "manifest.json").read_text())["splits"]["train"]["documents"]
    assert inspect_folder(copy).problems == [
        f"{file}: 1 ids beyond the vocabulary of 300",
        f"{file}: its SHA-256 is not the manifest's",
        f"train: {documents - 1} documents, the manifest says {documents}",
    ]
