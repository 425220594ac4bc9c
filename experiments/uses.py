"""What else a head is good for: calibration, a quantized head, early exit, a token added without training.

    python experiments/uses.py RUN... [--data data/prose8k]       # of checkpoints that are there; one JSON line each

Every part is measured on the second half of the text; what has to be fitted (a temperature, a scale) is, on the first.
"""

from collections.abc import Callable

import numpy as np
import torch
from reading import print_rows
from torch import Tensor

from harmonic_gpt.data.tokens import Tokens
from harmonic_gpt.evaluation.activations import final_norm, head_input, text_states
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM

TOKENS = 16384  # leading validation tokens
BLOCK = 256
ROWS = 1024  # positions whose logits are built at a time
BINS = 15
FITTED = 2048  # positions that choose the temperature
TEMPERATURES = np.geomspace(0.5, 2, 17)
CONFIDENCES = (0.5, 0.7, 0.9)
CONTEXTS = (1, 4, 16)
SCALES = np.geomspace(1 / 16, 4, 13)
MAX_NEW_TOKENS = 50


@torch.no_grad()
def uses(model: HarmonicGPT2ForCausalLM, validation: Tokens, tokens: int = TOKENS) -> dict:
    """All of it for one model, whose head is one of ours."""
    block = min(BLOCK, model.config.n_positions)
    ids = validation.read(0, min(len(validation), tokens + 1))
    was_training = model.training
    model.eval()
    states, labels = text_states(model, ids, block)
    half = len(labels) // 2
    head, norm = model.lm_head, final_norm(model)
    values = head.values()

    def logits(x: Tensor, centers: Tensor = head.weight) -> Tensor:
        prior = head.log_prior if len(centers) == len(head.weight) else None  # a new token has none
        return head_logits(x, centers, head=head.name, log_prior=prior, **values)

    x = head_input(model, states[-1])
    first, second = (x[:half], labels[:half]), (x[half:], labels[half:])
    layers = [head_input(model, norm(h[half:])) for h in states[1:-1]]
    measured = {
        "calibration": calibration(first, second, logits),
        "quantized": {
            f"int{bits}": mean_nats(*second, lambda rows, q=quantized(head.weight, bits): logits(rows, q))
            - mean_nats(*second, logits)
            for bits in (8, 4)
        },
        "early_exit": [early_exit(layers, second[0], logits, confidence) for confidence in CONFIDENCES],
        "new_token": [new_tokens(first, second, head.weight, logits, contexts) for contexts in CONTEXTS],
    }
    model.train(was_training)
    return measured


Head = Callable[[Tensor], Tensor]  # (n, D) -> logits (n, V)


def mean_nats(x: Tensor, labels: Tensor, logits: Head, temperature: float = 1.0) -> float:
    """Mean loss in nats per token of hidden states (N, D), the logits divided by a temperature."""
    nats = [
        torch.nn.functional.cross_entropy(logits(rows) / temperature, label, reduction="sum").item()
        for rows, label in zip(x.split(ROWS), labels.split(ROWS), strict=True)
    ]
    return sum(nats) / len(labels)


def calibration(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], logits: Head) -> dict:
    """Expected calibration error of the most likely token before and after a temperature that the first half chose."""
    few = tuple(side[-FITTED:] for side in first)
    temperature = min(TEMPERATURES, key=lambda t: mean_nats(*few, logits, t))

    def answers(t: float) -> tuple[np.ndarray, np.ndarray]:
        best = [(logits(rows) / t).softmax(-1).max(-1) for rows in second[0].split(ROWS)]
        confidence = torch.cat([one.values for one in best])
        return confidence.numpy(), (torch.cat([one.indices for one in best]) == second[1]).numpy()

    return {
        "temperature": float(temperature),
        "error": calibration_error(*answers(1.0)),
        "error_after": calibration_error(*answers(temperature)),
        "nats_gained": mean_nats(*second, logits) - mean_nats(*second, logits, temperature),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean over positions (N,) of |mean confidence - accuracy| in bins of equally many positions, by confidence."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts) / len(order))


def quantized(centers: Tensor, bits: int) -> Tensor:
    """Rows (V, D) rounded to signed integers of so many bits, each row with a scale of its own (its largest value)."""
    most = 2 ** (bits - 1) - 1
    scale = centers.abs().amax(1, keepdim=True).clamp(min=torch.finfo(centers.dtype).tiny) / most
    return (centers / scale).round() * scale


def early_exit(layers: list[Tensor], last: Tensor, logits: Head, confidence: float) -> dict:
    """A position leaves after the first block whose reading has this confidence: how often its answer is the final one,
    and the share of blocks that is saved.

    Args:
        layers: what the head reads after each block but the last, (N, D) each. last: the same after the last one.
    """
    blocks = len(layers) + 1
    left, saved, agree = 0, 0, 0
    for start in range(0, len(last), ROWS):
        final = logits(last[start : start + ROWS]).argmax(-1)
        open_ = torch.ones(len(final), dtype=torch.bool)
        for block, h in enumerate(layers, 1):
            best = logits(h[start : start + ROWS]).softmax(-1).max(-1)
            leaves = open_ & (best.values >= confidence)
            agree += int((best.indices == final)[leaves].sum())
            left += int(leaves.sum())
            saved += int(leaves.sum()) * (blocks - block)
            open_ &= ~leaves
    n = len(last)
    return {
        "confidence": confidence,
        "left": left / n,
        "agreement_of_those": agree / left if left else None,
        "blocks_saved": saved / (n * blocks),
    }


def new_tokens(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], centers: Tensor, logits: Callable, contexts: int
) -> dict:
    """A token's center replaced by the mean of `contexts` hidden states that precede it, without gradients.

    One token at a time, of the frequent ones; means over them. `nats`: on the token's own occurrences in the second
    half. `cost`: what the change loses there and at all other positions together, in nats for each occurrence of the
    token: a center that lies near everything wins its own occurrences and takes from all others. The mean is used as it
    is, and by the rule and scale that cost least on the first half (`best`): "scaled" is the mean times a scale;
    "moved" starts at the mean of all centers and adds, times a scale, what the mean differs by from all hidden states'.
    """
    counts = [torch.bincount(labels, minlength=len(centers)) for _, labels in (first, second)]
    usable = ((counts[0] >= max(CONTEXTS)) & (counts[1] >= 5)).nonzero().squeeze(1)
    tokens = usable[counts[0][usable].argsort(descending=True, stable=True)][:MAX_NEW_TOKENS]
    if not len(tokens):
        return {"contexts": contexts, "tokens": 0}
    means = torch.stack([first[0][first[1] == token][:contexts].mean(0) for token in tokens])
    halves = {"fit": first, "read": second}
    sides = {name: _normalizers(*half, logits, tokens) for name, half in halves.items()}

    own_part = means - first[0].mean(0)
    placed = {("scaled", float(scale)): scale * means for scale in SCALES}
    placed |= {("moved", float(scale)): centers.mean(0) + scale * own_part for scale in SCALES}

    def loss(name: str, at: Tensor) -> tuple[float, float]:
        return _replaced(*sides[name], logits(halves[name][0], at), tokens)

    rule, scale = min(placed, key=lambda chosen: loss("fit", placed[chosen])[1])
    trained, _ = _replaced(*sides["read"], sides["read"][2], tokens)
    row = {"contexts": contexts, "tokens": len(tokens), "trained": trained}
    for name, at in (("as_it_is", means), ("best", placed[rule, scale])):
        row |= {name: dict(zip(("nats", "cost"), loss("read", at), strict=True))}
    row["best"] |= {"rule": rule, "scale": scale}
    return row


def _normalizers(x: Tensor, labels: Tensor, logits: Callable, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """labels (N,), log of the sum over all tokens (N,), and the logits of `tokens` (N, K), of hidden states (N, D)."""
    total, own = [], []
    for part in x.split(ROWS):
        z = logits(part)
        total.append(z.logsumexp(-1))
        own.append(z[:, tokens])
    return labels, torch.cat(total), torch.cat(own)


def _replaced(labels: Tensor, total: Tensor, old: Tensor, new: Tensor, tokens: Tensor) -> tuple[float, float]:
    """Mean nats on a token's own occurrences once its logits `old` (N, K) have become `new`, and what the change costs
    at all positions for each of these occurrences."""
    rest = total[:, None] + torch.log1p(-(old - total[:, None]).exp().clamp(max=1 - 1e-6))
    after = torch.logaddexp(rest, new)  # (N, K)
    own = labels[:, None] == tokens
    nats = ((after - new) * own).sum(0) / own.sum(0)
    change = (after - total[:, None]) - (new - old) * own
    return float(nats.mean()), float((change.sum(0) / own.sum(0)).mean())


if __name__ == "__main__":
    print_rows(uses, __doc__, "cpu")
