"""Which documents are for validation, and which were seen before."""

import hashlib
from math import ceil

import numpy as np

NANOGPT_SHARE, NANOGPT_SEED = 0.0005, 2357


def content_hash(text: str) -> bytes:
    """16 bytes that identify a document; they decide its split and find its duplicates."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_validation(digest: bytes, share: float) -> bool:
    """Membership depends on the document alone: adding documents moves none from one split to the other."""
    return int.from_bytes(digest[:8], "big") < share * 2**64


def nanogpt_validation(rows: int) -> np.ndarray:
    """Whether each document is in nanoGPT's validation split; (rows,) bool.

    nanoGPT's data/openwebtext/prepare.py calls datasets' train_test_split(test_size=0.0005, seed=2357, shuffle=True),
    which takes the first ceil(test_size * rows) of numpy's permutation.
    """
    validation = np.zeros(rows, bool)
    validation[np.random.default_rng(NANOGPT_SEED).permutation(rows)[: ceil(NANOGPT_SHARE * rows)]] = True
    return validation


class SeenDocuments:
    """A set of content hashes in 8 bytes a document, 16 for a moment while it grows.

    It keeps the first half of each hash: among n documents one that is new is taken for a duplicate with probability
    n^2 / 2^65, 2e-6 for all of OpenWebText. The keys lie in sorted arrays, each at least twice as long as the next.
    """

    def __init__(self, keys: np.ndarray | None = None):
        self.runs: list[np.ndarray] = [] if keys is None or not len(keys) else [np.sort(keys)]

    @staticmethod
    def keys(digests: list[bytes]) -> np.ndarray:
        """What hashes are known by; (len(digests),) uint64."""
        return np.frombuffer(b"".join(digest[:8] for digest in digests), "<u8")

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Add keys; returns which were new, (len(keys),) bool. Of equal ones the first is."""
        new = np.zeros(len(keys), bool)
        new[np.unique(keys, return_index=True)[1]] = True
        for run in self.runs:
            new &= run[np.minimum(np.searchsorted(run, keys), len(run) - 1)] != keys
        if new.any():
            self.runs.append(np.sort(keys[new]))
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            merged = np.concatenate([self.runs.pop(), self.runs.pop()])
            merged.sort()
            self.runs.append(merged)
        return new
