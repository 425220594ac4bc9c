"""What the sampler promises about which tokens go where."""

import json
from pathlib import Path

import numpy as np
import pytest

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.sampler import MixtureSampler, Permutation, Sampler
from harmonic_gpt.data.tokens import Piece, TokenFolder, Tokens, open_token_folder
from harmonic_gpt.errors import InputError


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
    with pytest.raises(InputError, match=r"^0 training tokens are less than one block"):
        Sampler(Tokens([], np.dtype("<u2"), 10), 10, 2, seed=0)


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    """A folder of two sources whose documents are told apart by their letters."""
    place = tmp_path_factory.mktemp("two")
    for name, letter in (("first", "a"), ("second", "b")):
        rows = [json.dumps({"text": " ".join([letter * 3] * 40 + [str(i)])}) for i in range(60)]
        (place / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    sources = [str(place / f"{name}.jsonl") for name in ("first", "second")]
    return open_token_folder(prepare(sources, place / "out", vocab_size=300, validation_share=0.2))


def test_the_leading_tokens_of_a_split_are_of_every_source(two_sources, monkeypatch):
    whole = two_sources.tokens("train")
    first, second = (tokens.read(0, 10**9) for tokens in two_sources.sources("train").values())
    count = len(whole) // 3
    share = len(first) * count // len(whole)
    part = two_sources.leading("train", count)
    assert np.array_equal(part.read(0, 10**9), np.concatenate([first[:share], second[: count - share]]))
    assert np.array_equal(part.read(share - 5, 10), np.concatenate([first[share - 5 : share], second[:5]]))
    monkeypatch.setattr("harmonic_gpt.data.tokens.TURN", 20)
    mixed = two_sources.leading("train", count).read(0, 10**9)
    assert np.array_equal(np.sort(mixed), np.sort(part.read(0, 10**9)))
    turn = first[: share // (-(-count // 20))], second[: (count - share) // (-(-count // 20))]
    assert np.array_equal(mixed[: sum(map(len, turn))], np.concatenate(turn))
    assert len(two_sources.leading("train", 10**9)) == len(whole)


def test_shares_of_long_sources_do_not_overflow(monkeypatch):
    class Long(Tokens):
        def __init__(self, length):
            super().__init__([], np.dtype("<u2"), 9, [Piece(Path("unread"), 0, length)])

    folder = TokenFolder(Path(), 9, {"train": Long(9 * 10**9)}, None, _verified={"train"})
    monkeypatch.setattr(TokenFolder, "sources", lambda *_: {"a": Long(5 * 10**9), "b": Long(4 * 10**9)})
    pieces = folder.leading("train", 9 * 10**9).pieces(0, 9 * 10**9)
    assert sum(piece.length for piece in pieces) == 9 * 10**9
    assert all(piece.length > 0 for piece in pieces)


def test_the_leading_tokens_of_many_files_are_its_first(line):
    tokens = line(40, files=3)
    folder = TokenFolder(tokens.files[0].parent, tokens.vocab_size, {"val": tokens}, None)
    assert np.array_equal(folder.leading("val", 33).read(0, 40), tokens.read(0, 33))
    assert len(folder.leading("val", 0)) == 0


def test_a_mixture_has_its_shares_exactly(two_sources):
    """Over any 4,096 blocks in a row, to one part in a thousand; and neighbors are mixed."""
    weights = {"first.jsonl": 3.0, "second.jsonl": 1.0}
    sampler = MixtureSampler(two_sources, weights, block_size=8, batch_size=64, seed=0)
    starts = {name: set(tokens.read(0, 10**9).tolist()) for name, tokens in two_sources.sources("train").items()}
    only_first = starts["first.jsonl"] - starts["second.jsonl"]
    from_first = np.array([np.isin(sampler.batch(step), list(only_first)).any(axis=1) for step in range(64)])
    assert from_first.mean() == pytest.approx(0.75, abs=1e-3)
    assert from_first[0, :4].sum() == 3


def test_a_mixture_takes_each_source_without_replacement(two_sources):
    sampler = MixtureSampler(two_sources, {"first.jsonl": 1.0, "second.jsonl": 1.0}, 8, 2, seed=0)
    blocks = sampler.samplers[0].blocks_per_epoch
    seen = np.concatenate([sampler.batch(step) for step in range(blocks)])  # one block of each source a step
    alone = Sampler(two_sources.sources("train")["first.jsonl"], 8, 1, seed=0)
    expected = {alone.batch(step).tobytes() for step in range(blocks)}
    assert expected <= {block[None].tobytes() for block in seen}


def test_a_mixture_does_not_depend_on_the_world_size(two_sources):
    sampler = MixtureSampler(two_sources, {"first.jsonl": 0.3, "second.jsonl": 0.7}, 8, 8, seed=1)
    for step in (0, 300):
        ranks = [sampler.batch(step, rank, 4) for rank in range(4)]
        assert np.array_equal(np.concatenate(ranks), sampler.batch(step))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"first.jsonl": 1.0}, "must name the sources"),
        ({"first.jsonl": 1.0, "third": 1.0}, "must name the sources"),
        ({"first.jsonl": 1.0, "second.jsonl": 1e-9}, "at least 1/16384"),
    ],
)
def test_weights_that_cannot_be_are_named(two_sources, weights, message):
    with pytest.raises(InputError, match=message):
        MixtureSampler(two_sources, weights, 8, 8, seed=0)
