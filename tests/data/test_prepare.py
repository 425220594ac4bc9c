"""Documents to token files."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from harmonic_gpt.data import prepare as prepare_module
from harmonic_gpt.data import sources
from harmonic_gpt.data.prepare import LOWEST_HASH, prepare
from harmonic_gpt.data.shards import ShardWriter
from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.split import content_hash, is_validation, nanogpt_validation
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from tests.conftest import SHARED


def test_token_files_decode_to_the_documents(corpus, token_folder):
    folder = open_token_folder(token_folder)
    tokenizer = AutoTokenizer.from_pretrained(token_folder / "tokenizer")
    texts = list(documents(str(corpus)))
    expected = {
        split: [t for t in texts if is_validation(content_hash(t), 0.2) == (split == "val")]
        for split in ("train", "val")
    }
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
    for name in ("train-00000.bin", "val-00000.bin", "manifest.json", "tokenizer/tokenizer.json"):
        assert (again / name).read_bytes() == (token_folder / name).read_bytes()


def test_duplicates_and_empty_documents_are_dropped(tmp_path):
    rows = ["one", "two", "one", "", "three", "two", "one", *(f"filler {i}" for i in range(60))]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    manifest = open_token_folder(prepare(str(path), tmp_path / "out", vocab_size=300)).manifest
    assert (manifest["duplicates"], manifest["empty"]) == (3, 1)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 63


@pytest.mark.skipif(not (SHARED / "data/gpt2-tokenizer").is_dir(), reason="shared/data/gpt2-tokenizer is not here")
def test_with_gpt2s_tokenizer(corpus, tmp_path):
    folder = open_token_folder(
        prepare(str(corpus), tmp_path / "out", tokenizer=str(SHARED / "data/gpt2-tokenizer"), validation_share=0.2)
    )
    assert folder.vocab_size == 50257
    assert folder.manifest["dtype"] == "uint16"
    assert folder.manifest["end_of_text"] == 50256


def test_large_vocabularies_take_uint32(corpus, token_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(token_folder / "tokenizer")
    tokenizer.add_tokens([f"<extra {i}>" for i in range(66_000)])
    tokenizer.save_pretrained(tmp_path / "big")
    folder = open_token_folder(
        prepare(str(corpus), tmp_path / "out", tokenizer=str(tmp_path / "big"), validation_share=0.2)
    )
    assert folder.manifest["dtype"] == "uint32"
    assert (
        folder.tokens("train").read(0, 50).tolist()
        == open_token_folder(token_folder).tokens("train").read(0, 50).tolist()
    )


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "no .txt, .jsonl or .parquet files"),
        ("", {}, "no training documents"),
        ('{"body": "x"}\n', {}, "no column 'text'; it has 'body'"),
        ('{"text": 3}\n', {}, "holds int"),
        ('{"text": "only one document"}\n', {}, "no val documents among 1; a run needs two"),
        ('{"text": \n', {}, "cannot be read"),
        ('{"text": "a"}\n', {"tokenizer": "/nowhere/tokenizer"}, "no tokenizer at"),
        ('{"text": "a"}\n', {"vocab_size": 256}, "vocab_size: expected at least 257"),
        ('{"text": "a"}\n', {"tokenizer": "x", "vocab_size": 300}, "either tokenizer or vocab_size"),
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


@pytest.mark.parametrize("order", [1, -1])
def test_few_documents_have_one_for_validation(tmp_path, order):
    """Where no hash is below the share, the lowest is taken, wherever it stands; equal documents go with it."""
    texts = [text for i in range(12) if not is_validation(content_hash(text := f"text {i}"), 0.05)]
    lowest = min(texts, key=content_hash)
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts[::order], "", lowest]))
    out = prepare(str(path), tmp_path / "out", vocab_size=300, drop_duplicates=False)
    folder = open_token_folder(out)
    ids = folder.tokens("val").read(0, 1000)
    decoded = AutoTokenizer.from_pretrained(out / "tokenizer").decode(ids)
    assert decoded == 2 * f"{lowest}<|endoftext|>"
    assert folder.manifest["notes"] == [LOWEST_HASH]


def test_a_preparation_of_an_older_version_is_continued(corpus, token_folder, tmp_path):
    """Killed before the folder got its name. Its record has no vocabulary where the default one was meant."""
    partial = tmp_path / "out.partial"
    shutil.copytree(token_folder, partial)
    manifest = json.loads((partial / "manifest.json").read_text())
    manifest["request"]["vocab_size"] = None
    (partial / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="vocab_size: 4096 there, 300 now"):
        prepare(str(corpus), tmp_path / "out", vocab_size=300, validation_share=0.2)
    prepare([str(corpus)], tmp_path / "out", vocab_size=4096, validation_share=0.2)
    assert not partial.exists()


def test_existing_folders_are_not_overwritten(corpus, token_folder):
    with pytest.raises(InputError, match="exists already"):
        prepare(str(corpus), token_folder)


def test_sources_share_a_folder_and_keep_their_provenance(corpus, tmp_path):
    """Shards end where a source ends; a document that two sources hold is counted as the second one's duplicate."""
    other = tmp_path / "other.jsonl"
    first = corpus.read_text().splitlines()[0]
    other.write_text(
        "".join(json.dumps({"body": f"Another text, number {i}."}) + "\n" for i in range(80))
        + first.replace("text", "body", 1)
    )
    out = prepare(
        [f"{corpus},name=stories", f"{other},column=body"], tmp_path / "out", vocab_size=300, validation_share=0.2
    )
    folder = open_token_folder(out)
    stories, others = folder.manifest["sources"]
    assert (stories["name"], others["name"], others["column"]) == ("stories", "other.jsonl", "body")
    assert (stories["read"], stories["duplicates"], others["read"], others["duplicates"]) == (120, 0, 81, 1)
    assert others["files"] == [{"name": str(other), "bytes": other.stat().st_size}]
    for split in ("train", "val"):
        by_source = folder.sources(split)
        assert {name: len(tokens) for name, tokens in by_source.items()} == {
            s["name"]: s["splits"][split]["tokens"] for s in (stories, others)
        }
        assert sum(map(len, by_source.values())) == len(folder.tokens(split))
    alone = open_token_folder(
        prepare(str(corpus), tmp_path / "alone", tokenizer=str(out / "tokenizer"), validation_share=0.2)
    )
    assert np.array_equal(alone.tokens("train").read(0, 10**9), folder.sources("train")["stories"].read(0, 10**9))


def test_shards_end_near_their_size_and_hold_the_same_tokens(corpus, token_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_DOCUMENTS", 4)
    out = prepare(str(corpus), tmp_path / "out", vocab_size=300, validation_share=0.2, shard_tokens=3000, num_workers=3)
    files = json.loads((out / "manifest.json").read_text())["splits"]["train"]["files"]
    assert len(files) > 4
    longest = 1500  # tokens of a batch of four
    assert all(3000 <= file["tokens"] < 3000 + longest for file in files[:-1])
    for file in files:
        data = (out / file["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        assert np.frombuffer(data, "<u2")[-1] == 299  # whole documents
    for split in ("train", "val"):
        ids = [open_token_folder(path).tokens(split).read(0, 10**9) for path in (out, token_folder)]
        assert np.array_equal(*ids)


def test_the_files_do_not_depend_on_the_number_of_workers(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_DOCUMENTS", 3)
    outs = [prepare(str(corpus), tmp_path / str(n), vocab_size=300, shard_tokens=2000, num_workers=n) for n in (1, 7)]
    assert contents(outs[0]) == contents(outs[1])


def test_nanogpts_validation_membership_goes_by_place(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i % 5000}"}) + "\n" for i in range(9000)))
    out = prepare(str(path), tmp_path / "out", vocab_size=300, validation="nanogpt", drop_duplicates=False)
    folder = open_token_folder(out)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    texts = tokenizer.decode(folder.tokens("val").read(0, 10**6)).split("<|endoftext|>")
    assert texts == [f"text {i % 5000}" for i in np.flatnonzero(nanogpt_validation(9000))] + [""]
    assert folder.manifest["splits"]["train"]["documents"] == 9000 - 5
    with pytest.raises(InputError, match=r"validation_share: nanoGPT's is 0\.0005"):
        prepare(str(path), tmp_path / "other", validation="nanogpt", validation_share=0.1)


def test_a_source_with_another_number_of_documents_than_announced_is_refused(corpus, tmp_path, monkeypatch):
    """The place of the validation documents depends on the number."""
    original = prepare_module.open_source
    monkeypatch.setattr(prepare_module, "open_source", lambda *args: dataclasses.replace(original(*args), rows=121))
    with pytest.raises(InputError, match="120 documents where 121 were announced"):
        prepare(str(corpus), tmp_path / "out", vocab_size=300, validation="nanogpt")


def test_inputs_that_can_never_work_are_refused_at_once(corpus, tmp_path):
    for options in (
        {"validation_share": 0.0},
        {"validation_share": 1.0},
        {"validation": "random"},
        {"shard_tokens": 0},
    ):
        with pytest.raises(InputError):
            prepare(str(corpus), tmp_path / "out", **options)
    with pytest.raises(InputError, match=r"two sources are called 'docs\.jsonl'"):
        prepare([str(corpus), str(corpus)], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_before_the_first_shard_leaves_nothing(corpus, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(ShardWriter, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(str(corpus), tmp_path / "out", vocab_size=300)
    assert not list(tmp_path.iterdir())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tokenizer_knows_every_source_whatever_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("harmonic_gpt.data.prepare.TOKENIZER_TEXT", 4000)
    for name, word in (("one", "alphabet"), ("two", "zirconium")):
        rows = [json.dumps({"text": f"{word} {word} {i}"}) for i in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    for order in (("one", "two"), ("two", "one")):
        out = prepare([str(tmp_path / f"{name}.jsonl") for name in order], tmp_path / order[0], vocab_size=300)
        tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
        assert len(tokenizer(" alphabet").input_ids) == len(tokenizer(" zirconium").input_ids) == 1
