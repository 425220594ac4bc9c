"""Do two models represent the same text alike? Linear CKA and RSA between their layers.

Both compare relations between positions, not coordinates, so models of different widths can be compared.
"""

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.extras import require

POSITIONS = 1000  # of the text, at which layers are compared: N x N matrices
SEED = 0  # of the permutation


def kernel(x: Tensor) -> Tensor:
    """Centered Gram matrix (N, N) of vectors (N, D), of Frobenius norm 1; NaN if they are all alike. Float64."""
    centered = x.double() - x.double().mean(0)
    gram = centered @ centered.T
    return gram / gram.norm()


def distance_ranks(x: Tensor) -> Tensor:
    """(N (N - 1) / 2,) float64: ranks of the pairwise cosine distances of centered vectors (N, D), standardised to
    length 1; NaN if all are alike."""
    require("eval", "scipy")
    from scipy.stats import rankdata

    unit = torch.nn.functional.normalize(x.double() - x.double().mean(0), dim=1)
    distances = 1 - (unit @ unit.T)[*torch.triu_indices(len(x), len(x), 1)]
    if distances.max() - distances.min() < 1e-12:
        return torch.full_like(distances, torch.nan)
    ranks = torch.from_numpy(rankdata(distances.numpy()))
    return (ranks - ranks.mean()) / (ranks - ranks.mean()).norm()


def layer_similarity(a: list[Tensor], b: list[Tensor]) -> dict:
    """CKA and RSA of every layer of one model with every layer of another, at the same N positions of the same text.

    cka: linear centered kernel alignment (Kornblith et al. 2019), 0 to 1, unchanged by rotation, translation and scale
    of either layer. With N near D or below, even unrelated layers score well above 0. rsa: representational similarity
    (Kriegeskorte et al. 2008), -1 to 1, the Spearman correlation of both layers' pairwise cosine distances.

    Args:
        a, b: (N, D) a layer. `shuffled` values: the largest over layers when the positions of b are permuted: no
            similarity.
    Values of collapsed layers are None.
    """
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(a[0])))
    similarity: dict = {"positions": len(order), "seed": SEED}
    for key, form in (("cka", kernel), ("rsa", distance_ranks)):
        left, right = ([form(x) for x in layers] for layers in (a, b))
        similarity[key] = [[_number(x, y) for y in right] for x in left]
        shuffled = [form(y[order]) for y in b]
        values = [value for x in left for y in shuffled if (value := _number(x, y)) is not None]
        similarity[f"{key}_shuffled"] = max(values, default=None)
    return similarity


def _number(x: Tensor, y: Tensor) -> float | None:
    value = float((x * y).sum())
    return None if np.isnan(value) else value
