"""Which rare token comes? What a model knows of rare tokens, apart from how much probability it gives to all of them.

-log p(token) = -log p(a rare one comes) - log p(token | a rare one comes). Any model can be shifted towards rare tokens
afterwards, at the expense of frequent ones; the second part is what no such shift changes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harmonic_gpt.evaluation.measures.bootstrap import percentile_interval, segment_ratio
from harmonic_gpt.evaluation.measures.lens_agreement import CHUNK, log_probabilities

RARE = (1, 99)  # occurrences in the training text (of its first 20 M tokens)
MIN_TARGETS = 100  # for a headline


@dataclass(frozen=True)
class RareTokens:
    row: dict
    headline: tuple[float, np.ndarray] | None = None  # nats for which token, and its bootstrap replicates


def is_rare(counts: np.ndarray) -> np.ndarray:
    """(V,) bool of occurrences in training (V,)."""
    return (counts >= RARE[0]) & (counts <= RARE[1])


@torch.no_grad()
def rare_tokens(model: PreTrainedModel, last: Tensor, labels: Tensor, counts: np.ndarray, seed: int = 0) -> RareTokens:
    """Nats per target for which rare token it is, given that a rare one comes.

    `control` is the same by training frequencies alone; `nats` is the whole loss of these targets.

    Args:
        last: (N, D) hidden states behind the final norm. labels: (N,) next tokens.
        counts: (V,) occurrences of each token in the training text. The head may have more rows than that (a padded
            vocabulary): these are not rare.
    """
    head = model.get_output_embeddings().weight
    rare = torch.zeros(max(len(head), len(counts)), dtype=torch.bool)
    rare[: len(counts)] = torch.from_numpy(is_rare(counts))
    rare = rare[: len(head)]
    is_target = rare[labels]
    positions = is_target.nonzero()[:, 0]
    row: dict = {"targets": len(positions), "share": float(is_target.double().mean())}
    if len(positions) < MIN_TARGETS:
        return RareTokens(row | {"flag": f"fewer than {MIN_TARGETS} targets are rare"})
    nats, which = (np.zeros(len(labels)) for _ in range(2))
    for part in positions.split(max(1, CHUNK // len(head))):
        log_p = log_probabilities(model, last[part].to(head)).double().cpu()  # (n, V)
        own = log_p.gather(1, labels[part, None])[:, 0]
        nats[part] = -own
        which[part] = log_p[:, rare].logsumexp(1) - own
    by_frequency = -np.log(counts[labels[positions]] / counts[is_rare(counts)].sum())
    value, replicates = segment_ratio(which, is_target.numpy(), seed)
    row |= {
        "nats": float(nats.sum() / len(positions)),
        "which": value,
        "which_interval": percentile_interval(replicates),
        "control": float(by_frequency.mean()),
        "flag": None,
    }
    return RareTokens(row, (value, replicates))
