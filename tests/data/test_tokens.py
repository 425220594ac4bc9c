"""Reading token files, and what is noted of the files that were verified."""

import json
import os
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from harmonic_gpt.data.tokenizer import train_tokenizer
from harmonic_gpt.data.tokens import VERIFIED, Tokens, open_token_folder
from harmonic_gpt.errors import InputError


def test_reads_across_files(line):
    tokens = line(100)
    assert len(tokens) == 100
    for start, length in ((0, 100), (30, 10), (33, 1), (66, 34), (99, 1)):
        assert tokens.read(start, length).tolist() == list(range(start, start + length))


def test_nanogpt_folders_are_read_as_they_are(tmp_path):
    for name in ("train", "val"):
        np.arange(500, dtype="<u2").tofile(tmp_path / f"{name}.bin")
    folder = open_token_folder(tmp_path)
    assert folder.vocab_size == 50257
    assert folder.manifest is None
    assert folder.tokens("train").read(490, 10).tolist() == list(range(490, 500))
    assert open_token_folder(tmp_path, 512).vocab_size == 512


def test_the_vocabulary_of_character_data_is_that_of_the_largest_id(tmp_path, monkeypatch):
    """nanoGPT's meta.pkl says it, but unpickling runs code: its presence alone is looked at."""
    monkeypatch.setattr("harmonic_gpt.data.tokens.CHECK_TOKENS", 7)
    np.arange(60, dtype="<u2").tofile(tmp_path / "train.bin")
    np.array([3, 64, 1], "<u2").tofile(tmp_path / "val.bin")
    folder = open_token_folder(tmp_path)
    assert (folder.vocab_size, "the largest id" in folder.vocabulary_note) == (65, True)
    assert (folder.splits["train"].vocab_size, open_token_folder(tmp_path, 70).vocab_size) == (65, 70)
    np.array([3, 256, 1], "<u2").tofile(tmp_path / "val.bin")
    assert open_token_folder(tmp_path).vocab_size == 50257
    (tmp_path / "meta.pkl").write_bytes(b"no pickle")
    assert open_token_folder(tmp_path).vocab_size == 257


def test_an_id_beyond_the_vocabulary_is_named(tmp_path):
    ids = np.arange(100, dtype="<u2")
    ids[42] = 777
    ids.tofile(tmp_path / "train.bin")
    tokens = Tokens([tmp_path / "train.bin"], np.dtype("<u2"), 500)
    tokens.read(0, 42)
    with pytest.raises(InputError, match="token id 777"):
        open_token_folder(tmp_path, 500).tokens("train")
    with pytest.raises(InputError, match=r"train\.bin: token id 777 at position 42 is beyond the vocabulary of 500"):
        tokens.read(40, 10)


def _edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "val-00000.bin").unlink(), "it is missing"),
        (lambda f: (f / "train-00000.bin").write_bytes(b"12"), "bytes, it has 2"),
        (lambda f: (f / "manifest.json").write_text("{"), "not a manifest"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not a manifest"),
        (lambda f: _edit(f, lambda m: m.update(version=99)), "version 99"),
        (lambda f: _edit(f, lambda m: m.pop("splits")), "not a manifest"),
        (lambda f: _edit(f, lambda m: m.update(dtype="float8")), "not a manifest"),
        (lambda f: _edit(f, lambda m: m["splits"]["val"]["files"][0].update(sha256=None)), "expected its SHA-256"),
        (shutil.rmtree, "no token folder"),
        (lambda f: [p.unlink() for p in f.glob("*.*")], "neither manifest.json nor"),
    ],
)
def test_damage_is_found_when_the_folder_is_opened(token_folder, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(token_folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_token_folder(folder)


def test_another_tokenizer_is_refused(token_folder):
    folder = open_token_folder(token_folder)
    folder.check_tokenizer(AutoTokenizer.from_pretrained(token_folder / "tokenizer"))
    with pytest.raises(InputError, match="was made with the tokenizer"):
        folder.check_tokenizer(train_tokenizer(["other text"], 300))
    with pytest.raises(InputError, match="no test tokens"):
        folder.tokens("test")


def test_requests_are_compared_by_what_they_mean(token_folder, corpus):
    """A list of one source is that source, and no vocabulary is the default one, in older manifests as well."""
    folder = open_token_folder(token_folder)
    request = {"source": str(corpus), "tokenizer": None, "vocab_size": 300}
    folder.check_request(request)
    folder.check_request(request | {"source": [str(corpus)]})
    folder.manifest["request"] |= {"vocab_size": None}
    for size in (None, 4096):
        folder.check_request(request | {"vocab_size": size})
    with pytest.raises(InputError, match="vocab_size: 4096 there, 300 asked for"):
        folder.check_request(request)


def test_without_a_source_another_vocabulary_is_refused(token_folder):
    folder = open_token_folder(token_folder)
    folder.manifest["request"] |= {"vocab_size": 320}  # more than the text gave
    for size in (None, 300, 320):
        folder.check_request({"source": None, "vocab_size": size})
    with pytest.raises(InputError, match="has a vocabulary of 300 tokens, vocab_size asks for 8192; leave it out"):
        folder.check_request({"source": None, "vocab_size": 8192})


@pytest.fixture
def folder(token_folder, tmp_path):
    """A copy of the prepared folder that nothing has verified yet."""
    path = tmp_path / "copy"
    shutil.copytree(token_folder, path, ignore=shutil.ignore_patterns(VERIFIED))
    return path


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were read to verify them."""
    names = []
    check = Tokens.check

    def spy(self, sha256):
        names.extend(path.name for path in self.files)
        check(self, sha256)

    monkeypatch.setattr(Tokens, "check", spy)
    return names


def take(path, vocab_size=None):
    """Open a folder and take its splits, as a run does."""
    folder = open_token_folder(path, vocab_size)
    for split in folder.splits:
        folder.tokens(split)
    return folder


BOTH = ["train-00000.bin", "val-00000.bin"]


def test_what_was_found_right_is_not_read_again(folder, reads):
    opened = take(folder)
    assert reads == BOTH
    opened.tokens("train")
    take(folder)
    assert reads == BOTH


def test_a_file_of_another_time_is_read_again(folder, reads):
    take(folder)
    status = (folder / BOTH[1]).stat()
    os.utime(folder / BOTH[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    take(folder)
    assert reads == [*BOTH, BOTH[1]]


def test_a_file_of_another_size_is_read_again(tmp_path, reads):
    file = tmp_path / "train.bin"
    np.arange(100, dtype="<u2").tofile(file)
    status = file.stat()
    take(tmp_path)
    np.arange(101, dtype="<u2").tofile(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    take(tmp_path)
    assert reads == ["train.bin"] * 2


def test_a_file_is_read_again_for_another_vocabulary(tmp_path, reads):
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    take(tmp_path, 300)
    take(tmp_path, 200)
    assert reads == ["train.bin"] * 2
    with pytest.raises(InputError, match="token id 50 at position 50"):
        take(tmp_path, 50)


def test_files_are_read_anew_when_asked(folder, reads):
    opened = take(folder)
    opened.verify("val", anew=True)
    assert reads == [*BOTH, BOTH[1]]


@pytest.mark.parametrize("note", [b"{", b"[]", b"\xff", b'{"train-00000.bin": 3, "val-00000.bin": null}'])
def test_a_damaged_note_is_replaced(folder, reads, note):
    take(folder)
    (folder / VERIFIED).write_bytes(note)
    take(folder)
    take(folder)
    assert reads == 2 * BOTH


def test_a_folder_that_cannot_be_written_is_read_at_every_opening(folder, reads, monkeypatch):
    def refuse(*_args):
        raise PermissionError("read-only")

    monkeypatch.setattr("harmonic_gpt.data.tokens.write_json", refuse)
    take(folder)
    take(folder)
    assert reads == 2 * BOTH
    assert not (folder / VERIFIED).exists()


def flip_a_byte(file, keep_time):
    status, data = file.stat(), bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_flipped_byte_is_found(folder):
    take(folder)
    time = (folder / BOTH[0]).stat().st_mtime_ns
    flip_a_byte(folder / BOTH[0], keep_time=False)
    os.utime(folder / BOTH[0], ns=(time, time + 1))  # the clock of a file system may be coarse
    with pytest.raises(InputError, match=r"train-00000\.bin: its SHA-256 is not the manifest's"):
        take(folder)


def test_a_flipped_byte_under_the_old_time_is_found_anew_only(folder):
    take(folder)
    flip_a_byte(folder / BOTH[0], keep_time=True)
    opened = take(folder)
    with pytest.raises(InputError, match=r"train-00000\.bin: its SHA-256 is not the manifest's"):
        opened.verify("train", anew=True)


def test_what_was_found_wrong_is_not_noted(folder):
    flip_a_byte(folder / BOTH[0], keep_time=True)
    for _ in range(2):
        with pytest.raises(InputError, match="SHA-256"):
            take(folder)


def test_another_process_is_trusted(folder, reads):
    opened = open_token_folder(folder)
    opened.trust()
    opened.tokens("train")
    assert reads == []
