"""Reading token files, and the sampler: what it promises about which tokens go where."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from harmonic_gpt.data.sampler import Permutation, Sampler
from harmonic_gpt.data.tokenizer import train_tokenizer
from harmonic_gpt.data.tokens import Tokens, open_token_folder
from harmonic_gpt.errors import InputError


@pytest.fixture
def line(tmp_path):
    """Tokens whose id is their position, over three files."""

    def make(n, files=3):
        paths = []
        for i, part in enumerate(np.array_split(np.arange(n, dtype="<u2"), files)):
            paths.append(tmp_path / f"{i}.bin")
            part.tofile(paths[-1])
        return Tokens(paths, np.dtype("<u2"), n)

    return make


def test_reads_across_files(line):
    tokens = line(100)
    assert len(tokens) == 100
    for start, length in ((0, 100), (30, 10), (33, 1), (66, 34), (99, 1)):
        assert tokens.read(start, length).tolist() == list(range(start, start + length))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_one(n):
    for seed in range(3):
        assert np.array_equal(np.sort(Permutation(n, seed, 0)(np.arange(n))), np.arange(n))


def test_permutation_looks_random():
    """Mean displacement of neighbours of a random permutation of n is n / 3; seeds give unrelated orders."""
    n = 100_000
    a, b = Permutation(n, 0, 0)(np.arange(n)), Permutation(n, 0, 1)(np.arange(n))
    assert np.abs(np.diff(a)).mean() == pytest.approx(n / 3, rel=0.02)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.02


def test_an_epoch_visits_every_block_once(line):
    tokens, block, batch = line(1003), 10, 4
    sampler = Sampler(tokens, block, batch, seed=0)
    assert sampler.blocks_per_epoch == 99
    blocks = np.concatenate([sampler.batch(step) for step in range(99)])  # 99 batches of 4 are 4 epochs of 99 blocks
    offsets = set()
    for epoch in range(4):
        starts = np.sort(blocks[epoch * 99 : (epoch + 1) * 99, 0])
        assert (np.diff(starts) == block).all()
        offsets.add(int(starts[0]))
    assert (blocks == blocks[:, :1] + np.arange(block + 1)).all()  # targets are the inputs, shifted by one
    assert len(offsets) > 1  # block boundaries move between epochs
    assert max(offsets) < block


def test_the_global_batch_does_not_depend_on_the_world_size(line):
    sampler = Sampler(line(1003), 10, 8, seed=3)
    for step in (0, 7, 30):
        whole = sampler.batch(step)
        for world_size in (2, 4, 8):
            slices = [sampler.batch(step, rank, world_size) for rank in range(world_size)]
            assert np.array_equal(np.concatenate(slices), whole)
    assert np.array_equal(sampler.batch(5), Sampler(line(1003), 10, 8, seed=3).batch(5))
    assert not np.array_equal(sampler.batch(5), Sampler(line(1003), 10, 8, seed=4).batch(5))


@pytest.mark.parametrize("n", [11, 12, 20, 21, 29])
def test_corpora_of_about_one_block(line, n):
    sampler = Sampler(line(n, files=1), 10, 2, seed=0)
    for step in range(20):
        assert sampler.batch(step).shape == (2, 11)


def test_a_corpus_shorter_than_a_block_is_refused(line):
    with pytest.raises(InputError, match="less than one block"):
        Sampler(line(10, files=1), 10, 2, seed=0)


def test_nanogpt_folders_are_read_as_they_are(tmp_path):
    for name in ("train", "val"):
        np.arange(500, dtype="<u2").tofile(tmp_path / f"{name}.bin")
    folder = open_token_folder(tmp_path)
    assert folder.vocab_size == 50257
    assert folder.manifest is None
    assert folder.tokens("train").read(490, 10).tolist() == list(range(490, 500))
    assert open_token_folder(tmp_path, 512).vocab_size == 512


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
