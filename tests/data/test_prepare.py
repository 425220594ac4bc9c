"""Documents to token files."""

import json
import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from harmonic_gpt.data import prepare as module
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.split import content_hash, is_validation
from harmonic_gpt.data.tokenizer import ordinary_encoder, train_tokenizer
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from tests.conftest import SHARED


def test_token_files_decode_to_the_documents(corpus, token_folder):
    folder = open_token_folder(token_folder)
    tokenizer = AutoTokenizer.from_pretrained(token_folder / "tokenizer")
    texts = list(documents(str(corpus)))
    expected = {split: [t for t in texts if is_validation(content_hash(t), 0.2) == (split == "val")] for split in ("train", "val")}
    for split, wanted in expected.items():
        ids = folder.tokens(split).read(0, len(folder.tokens(split))).tolist()
        parts = tokenizer.decode(ids).split("<|endoftext|>")
        assert parts == [*wanted, ""]
        summary = folder.manifest["splits"][split]
        assert summary["documents"] == len(wanted)
        assert summary["tokens"] == len(ids)
        assert summary["text_bytes"] == sum(len(t.encode()) for t in wanted)


def test_preparing_twice_gives_the_same_bytes(corpus, token_folder, tmp_path):
    again = prepare(str(corpus), tmp_path / "again", vocab_size=300, validation_share=0.2)
    for name in ("train.bin", "val.bin", "manifest.json", "tokenizer/tokenizer.json"):
        assert (again / name).read_bytes() == (token_folder / name).read_bytes()


def test_the_split_is_stable_when_documents_are_added():
    texts = [f"document {i}" for i in range(2000)]
    share = np.mean([is_validation(content_hash(t), 0.1) for t in texts])
    assert 0.07 < share < 0.13
    assert not any(is_validation(content_hash(t), 0.0) for t in texts)


def test_duplicates_and_empty_documents_are_dropped(tmp_path):
    rows = ["one", "two", "one", "", "three", "two", "one", *(f"filler {i}" for i in range(60))]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    manifest = open_token_folder(prepare(str(path), tmp_path / "out", vocab_size=300)).manifest
    assert manifest["duplicates"] == 3
    assert sum(split["documents"] for split in manifest["splits"].values()) == 63


def test_a_literal_end_of_text_stays_ordinary_text():
    tokenizer = train_tokenizer(["some text to learn from"] * 3, 280)
    ids = ordinary_encoder(tokenizer).encode("a <|endoftext|> b").ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a <|endoftext|> b"
    assert tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.mark.skipif(not (SHARED / "data/gpt2-tokenizer").is_dir(), reason="shared/data/gpt2-tokenizer is not here")
def test_with_gpt2s_tokenizer(corpus, tmp_path):
    folder = open_token_folder(prepare(str(corpus), tmp_path / "out", tokenizer=str(SHARED / "data/gpt2-tokenizer"), validation_share=0.2))
    assert folder.vocab_size == 50257
    assert folder.manifest["dtype"] == "uint16"
    assert folder.manifest["end_of_text"] == 50256


def test_large_vocabularies_take_uint32(corpus, token_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(token_folder / "tokenizer")
    tokenizer.add_tokens([f"<extra {i}>" for i in range(66_000)])
    tokenizer.save_pretrained(tmp_path / "big")
    folder = open_token_folder(prepare(str(corpus), tmp_path / "out", tokenizer=str(tmp_path / "big"), validation_share=0.2))
    assert folder.manifest["dtype"] == "uint32"
    assert folder.tokens("train").read(0, 50).tolist() == open_token_folder(token_folder).tokens("train").read(0, 50).tolist()


def test_every_local_format_gives_the_same_documents(tmp_path):
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"Document {i}.\n\nWith two paragraphs, é and 漢字." for i in range(30)]
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert list(documents(str(tmp_path / name))) == texts, name
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i:02}.txt").write_text(text)
    assert list(documents(str(tmp_path / "texts"))) == texts
    assert list(documents(str(tmp_path / "texts" / "*.txt"))) == texts


def test_a_long_txt_is_cut_where_paragraphs_end(tmp_path):
    rng = random.Random(0)
    text = "".join("word " * rng.randrange(5, 60) + "\n" + "\n" * (rng.random() < 0.2) for _ in range(2000))
    (tmp_path / "long.txt").write_text(text)
    pieces = list(documents(str(tmp_path / "long.txt")))
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])


def test_pydocs_are_english_prose():
    stream = documents("pydocs")
    first = [next(stream) for _ in range(20)]
    assert all(len(text) > 100 for text in first)
    assert "assert" in first[0]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "no .txt, .jsonl or .parquet files"),
        ("", {}, "no training documents"),
        ('{"body": "x"}\n', {}, "no column 'text'; it has 'body'"),
        ('{"text": 3}\n', {}, "holds int"),
        ('{"text": "only one document"}\n', {}, "no val documents among 1"),
        ('{"text": \n', {}, "cannot be read"),
        ('{"text": "a"}\n', {"tokenizer": "/nowhere/tokenizer"}, "no tokenizer at"),
        ('{"text": "a"}\n', {"tokenizer": "x", "vocab_size": 300}, "either a tokenizer or a vocab_size"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, content, options, message):
    path = tmp_path / "docs.jsonl"
    if content is not None:
        path.write_text(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        prepare(str(path), tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_existing_folders_are_not_overwritten(corpus, token_folder):
    with pytest.raises(InputError, match="exists already"):
        prepare(str(corpus), token_folder)


def test_an_unreachable_hub_names_the_offline_alternatives(tmp_path):
    with pytest.raises(InputError, match="--source pydocs"):
        prepare("openwebtext", tmp_path / "out")


def test_a_crash_leaves_nothing(corpus, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module._TokenFile, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(str(corpus), tmp_path / "out", vocab_size=300)
    assert not list(tmp_path.iterdir())
