"""Validation membership and duplicates."""

import random

import datasets
import numpy as np
import pytest

from harmonic_gpt.data.split import SeenDocuments, content_hash, is_validation, nanogpt_validation


def test_the_split_is_stable_when_documents_are_added():
    texts = [f"document {i}" for i in range(2000)]
    share = np.mean([is_validation(content_hash(t), 0.1) for t in texts])
    assert 0.07 < share < 0.13
    assert not any(is_validation(content_hash(t), 0.0) for t in texts)


@pytest.mark.parametrize("rows", [2000, 2001, 10_000, 54_321])
def test_nanogpts_membership_is_that_of_train_test_split(rows):
    dataset = datasets.Dataset.from_dict({"row": range(rows)})
    split = dataset.train_test_split(test_size=0.0005, seed=2357, shuffle=True)  # nanoGPT's data/openwebtext/prepare.py
    assert np.flatnonzero(nanogpt_validation(rows)).tolist() == sorted(split["test"]["row"])


def test_nanogpts_membership_of_openwebtext_has_its_size():
    assert nanogpt_validation(8_013_769).sum() == 4007


def test_seen_documents_are_a_set():
    rng = random.Random(0)
    known, seen = set(), SeenDocuments()
    for _ in range(200):
        digests = [content_hash(str(rng.randrange(5000))) for _ in range(rng.randrange(1, 60))]
        expected = []
        for digest in digests:
            expected.append(digest not in known)
            known.add(digest)
        assert seen.add(SeenDocuments.keys(digests)).tolist() == expected
    assert sum(len(run) for run in seen.runs) == len(known)
    assert len(seen.runs) < 15
    again = SeenDocuments(np.concatenate(seen.runs[::-1]))
    assert not again.add(SeenDocuments.keys(sorted(known))).any()
    assert SeenDocuments().add(SeenDocuments.keys([])).tolist() == []


def test_seen_documents_take_eight_bytes_each():
    seen = SeenDocuments()
    keys = np.random.default_rng(0).integers(2**63, size=100_000, dtype=np.uint64)
    for part in np.array_split(keys, 400):
        seen.add(part)
    assert sum(run.nbytes for run in seen.runs) == 8 * len(keys)
