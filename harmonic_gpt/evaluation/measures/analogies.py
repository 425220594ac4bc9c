"""Word analogies: a is to b as c is to ?, by cosine and by distance, over the whole vocabulary."""

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.evaluation.measures.bootstrap import bootstrap_means, percentile_interval

MAX_QUERIES = 200  # of a task


def analogy_ranks(embedding: Tensor, tasks: dict[str, np.ndarray], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """For each task and method: rank (0 is best) of the right answers among all rows of `embedding` (V, D). (Q,) int64.

    Each pair of a task's ids (P, 2) is asked once, with another pair, chosen by the seed, as its example; P >= 2. The
    three inputs are excluded. "cosine" is 3CosAdd (Mikolov et al. 2013) on unit rows, "distance" the nearest row to b -
    a + c; "no offset" the rows nearest c alone: what finds the answer without any analogy (Linzen 2016). Ties count
    against: rows that are all alike answer nothing.
    """
    rows = embedding.detach().cpu().float()
    rows = rows - rows.mean(0)  # a common offset is no structure, and cosine would see nothing else
    unit = torch.nn.functional.normalize(rows, dim=1)
    half_norms = rows.square().sum(1) / 2
    return {task: _ranks(rows, unit, half_norms, ids, seed) for task, ids in tasks.items()}


def _ranks(rows: Tensor, unit: Tensor, half_norms: Tensor, ids: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    asked = rng.permutation(len(ids))[:MAX_QUERIES]
    example = (asked + rng.integers(1, len(ids), size=len(asked))) % len(ids)
    a, b = torch.from_numpy(ids[example]).T
    c, answer = torch.from_numpy(ids[asked]).T
    # A repeated word (the answer is one of the inputs) cannot be asked: inputs are excluded
    a, b, c, answer = torch.stack([a, b, c, answer])[:, (answer != a) & (answer != b) & (answer != c)]
    ranks = {}
    for method in ("cosine", "distance", "no offset"):  # one (Q, V) at a time
        if method == "cosine":
            score = (unit[b] - unit[a] + unit[c]) @ unit.T
        else:
            score = (rows[c] if method == "no offset" else rows[b] - rows[a] + rows[c]) @ rows.T - half_norms
        right = score.gather(1, answer[:, None])
        score.scatter_(1, torch.stack([a, b, c, answer], 1), -torch.inf)
        ranks[method] = (score >= right).sum(1).numpy()
    return ranks


def analogy_row(ranks: dict[str, np.ndarray]) -> dict:
    """Accuracy at 1 and at 5 of each method, with 95 % intervals over queries."""
    queries = len(ranks["cosine"])
    row: dict = {"queries": queries}
    for method, places in ranks.items() if queries else ():
        row[method] = {f"accuracy_at_{k}": float((places < k).mean()) for k in (1, 5)}
        row[method]["accuracy_at_5_interval"] = percentile_interval(bootstrap_means(places < 5))
    return row
