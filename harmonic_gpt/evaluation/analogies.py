"""Word analogies: a is to b as c is to ?, by cosine and by distance, over the whole vocabulary."""

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.evaluation.uncertainty import interval, weighted_means

METHODS = ("cosine", "distance", "no offset")
MOST_QUERIES = 200


def analogy_ranks(embedding: Tensor, ids: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Rank (0 is best) of the right answer among all rows of `embedding` (V, D), the three inputs excluded, for each method. (Q,) int64.

    Each pair of `ids` (P, 2) is asked once, with another pair, chosen by the seed, as its example; P >= 2. "cosine" is 3CosAdd
    (Mikolov et al. 2013) on unit rows, "distance" the nearest row to b - a + c; "no offset" the rows nearest c alone: what
    finds the answer without any analogy (Linzen 2016). Ties count against: rows that are all alike answer nothing.
    """
    rng = np.random.default_rng(seed)
    asked = rng.permutation(len(ids))[:MOST_QUERIES]
    example = (asked + rng.integers(1, len(ids), size=len(asked))) % len(ids)
    a, b = torch.from_numpy(ids[example]).T
    c, answer = torch.from_numpy(ids[asked]).T
    rows = embedding.detach().cpu().float()
    rows = rows - rows.mean(0)  # a common offset is no structure, and cosine would see nothing else
    unit = torch.nn.functional.normalize(rows, dim=1)
    half_norms = rows.square().sum(1) / 2
    target = rows[b] - rows[a] + rows[c]
    scores = {
        "cosine": (unit[b] - unit[a] + unit[c]) @ unit.T,
        "distance": target @ rows.T - half_norms,
        "no offset": rows[c] @ rows.T - half_norms,
    }
    result = {}
    for method, score in scores.items():  # (Q, V)
        right = score.gather(1, answer[:, None])
        score.scatter_(1, torch.stack([a, b, c, answer], 1), -torch.inf)
        result[method] = (score >= right).sum(1).numpy()
    # A repeated word (the answer is one of the inputs) cannot be asked: inputs are excluded
    possible = ((answer != a) & (answer != b) & (answer != c)).numpy()
    return {method: ranks[possible] for method, ranks in result.items()}


def analogy_row(ranks: dict[str, np.ndarray]) -> dict:
    """Accuracy at 1 and at 5 of each method, with 95 % intervals over queries."""
    queries = len(ranks["cosine"])
    row: dict = {"queries": queries}
    for method, found in ranks.items() if queries else ():
        row[method] = {f"accuracy_at_{k}": float((found < k).mean()) for k in (1, 5)}
        row[method]["accuracy_at_5_interval"] = interval(weighted_means(found < 5))
    return row
