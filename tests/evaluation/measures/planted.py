"""Embeddings with a geometry that is known."""

import numpy as np
import torch

from harmonic_gpt.evaluation.tasks.word_pairs import TokenPairs

P, D = 40, 24


def pairs(count=P) -> TokenPairs:
    ids = np.arange(2 * count).reshape(count, 2)
    return TokenPairs(ids, [(str(a), str(b)) for a, b in ids], {"pairs": count, "used": count})


def planted(kind: str) -> torch.Tensor:
    """(V, D): row 2p is the first word of pair p, row 2p + 1 its second; 300 more rows belong to no pair."""
    torch.manual_seed(1)
    rows = torch.randn(2 * P + 300, D)
    a, b = rows[0 : 2 * P : 2], rows[1 : 2 * P : 2]
    if kind == "lattice":
        b[:] = a + torch.randn(D)
    elif kind == "near":  # partners lie close, in no common direction
        b[:] = a + 0.1 * torch.randn(P, D)
    elif kind == "plane":  # two dimensions and no structure
        rows = rows[:, :2] @ torch.randn(2, D)
    elif kind == "point":
        rows[:] = torch.randn(D)
    elif kind == "two points":  # all first words on one point, all second words on another
        a[:], b[:] = torch.randn(D), torch.randn(D)
    return rows
