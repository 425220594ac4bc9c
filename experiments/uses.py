"""What else a head is good for: calibration, a quantized head, early exit, a token added without training.

    python experiments/uses.py RUN... [--data data/prose8k]       # of checkpoints that are there; one JSON line each

Every part is measured on the second half of the text; what has to be fitted (a temperature, a confidence, a scale) is,
on the first.
"""

from collections.abc import Callable

import numpy as np
import torch
from reading import print_rows
from scipy.optimize import minimize_scalar
from torch import Tensor

from harmonic_gpt.data.tokens import Tokens
from harmonic_gpt.evaluation.activations import final_norm, head_input, text_states
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM

TOKENS = 32768  # leading validation tokens
BLOCK = 256
ROWS = 1024  # positions whose logits are built at a time
BINS = 15
FITTED = 4096  # positions that choose the temperature
CONFIDENCES = (0.5, 0.7, 0.9)
THRESHOLDS = np.linspace(0.02, 0.995, 196)  # confidences that are tried for an agreement
AGREEMENT = 0.95  # with the whole model, of the positions that leave early
CONTEXTS = (1, 4, 16)
SCALES = np.geomspace(1 / 512, 64, 31)  # in steps of the square root of 2
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
    quarters = [(x[part], labels[part]) for part in (slice(half // 2), slice(half // 2, half))]
    layers = [head_input(model, norm(h)) for h in states[1:-1]]
    exits = [
        exit_readings([h[part] for h in layers], x[part], logits)
        for part in (slice(half), slice(half, None))
        if layers  # a model of one block has none
    ]
    measured = {
        "calibration": calibration(first, second, logits),
        "quantized": {
            f"int{bits}": mean_nats(*second, lambda rows, q=quantized(head.weight, bits): logits(rows, q))
            - mean_nats(*second, logits)
            for bits in (8, 4)
        },
        "early_exit": [early_exit(exits[1], confidence) for confidence in CONFIDENCES] if layers else [],
        "exit_at_agreement": early_exit(exits[1], confidence_for(exits[0], AGREEMENT)) if layers else None,
        "new_token": [new_tokens(*quarters, second, head.weight, logits, contexts) for contexts in CONTEXTS],
    }
    model.train(was_training)
    return measured


Head = Callable[[Tensor], Tensor]  # (n, D) -> logits (n, V)
Part = tuple[Tensor, Tensor]  # of the text: hidden states (N, D) and labels (N,)


def mean_nats(x: Tensor, labels: Tensor, logits: Head, temperature: float = 1.0) -> float:
    """Mean loss in nats per token of hidden states (N, D), the logits divided by a temperature."""
    nats = [
        torch.nn.functional.cross_entropy(logits(rows) / temperature, label, reduction="sum").item()
        for rows, label in zip(x.split(ROWS), labels.split(ROWS), strict=True)
    ]
    return sum(nats) / len(labels)


def calibration(first: Part, second: Part, logits: Head) -> dict:
    """Expected calibration error of the most likely token before and after a temperature that the first half chose, and
    by chance: of a model that is right just as often as it is confident."""
    few = tuple(side[-FITTED:] for side in first)
    fitted = minimize_scalar(lambda log_t: mean_nats(*few, logits, np.exp(log_t)), bounds=(-1, 1), method="bounded")
    temperature = float(np.exp(fitted.x))

    def answers(t: float) -> tuple[np.ndarray, np.ndarray]:
        best = [(logits(rows) / t).softmax(-1).max(-1) for rows in second[0].split(ROWS)]
        confidence = torch.cat([one.values for one in best])
        return confidence.numpy(), (torch.cat([one.indices for one in best]) == second[1]).numpy()

    confidence, right = answers(1.0)
    rng = np.random.default_rng(0)
    drawn = [calibration_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(20)]
    return {
        "temperature": temperature,
        "error": calibration_error(confidence, right),
        "error_by_chance": float(np.mean(drawn)),
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


Readings = tuple[np.ndarray, np.ndarray]  # of each block but the last at each position, (L - 1, N): see exit_readings


def exit_readings(layers: list[Tensor], last: Tensor, logits: Head) -> Readings:
    """The confidence of each layer's answer, and whether it is the whole model's.

    Args:
        layers: what the head reads after each block but the last, (N, D) each. last: the same after the last one.
    """
    confidences, agree = [], []
    for start in range(0, len(last), ROWS):
        final = logits(last[start : start + ROWS]).argmax(-1)
        best = [logits(h[start : start + ROWS]).softmax(-1).max(-1) for h in layers]
        confidences.append(np.stack([one.values.numpy() for one in best]))
        agree.append(np.stack([(one.indices == final).numpy() for one in best]))
    return np.concatenate(confidences, 1), np.concatenate(agree, 1)


def early_exit(readings: Readings, confidence: float) -> dict:
    """A position leaves after the first block whose reading has this confidence: how often its answer is the final one,
    and the share of blocks that is saved."""
    confidences, agree = readings
    sure = confidences >= confidence
    leaves, at = sure.any(0), sure.argmax(0)
    blocks = len(confidences) + 1
    right = agree[at, np.arange(len(at))][leaves]
    return {
        "confidence": float(confidence),
        "left": float(leaves.mean()),
        "agreement_of_those": float(right.mean()) if len(right) else None,
        "blocks_saved": float(((blocks - 1 - at) * leaves).sum() / (len(at) * blocks)),
    }


def confidence_for(readings: Readings, agreement: float) -> float:
    """The least confidence at which those that leave agree with the whole model so often; 1 if there is none."""
    for threshold in THRESHOLDS:
        reached = early_exit(readings, threshold)["agreement_of_those"]
        if reached is not None and reached >= agreement:
            return float(threshold)
    return 1.0


def new_tokens(shown: Part, fit: Part, read: Part, centers: Tensor, logits: Callable, contexts: int) -> dict:
    """A token's center replaced by the mean of `contexts` hidden states that precede it, without gradients.

    One token at a time, of the frequent ones; means over them. Contexts are of `shown`. `nats`: on the token's own
    occurrences in `read`. `cost`: what the change loses there and at all other positions together, in nats for each
    occurrence of the token: a center that lies near everything wins its own occurrences and takes from all others. The
    mean is used as it is, and by the rule and scale that cost least on `fit` (`best`): "scaled" is the mean times a
    scale; "moved" starts at the mean of all centers and adds, times a scale, what the mean differs by from all hidden
    states'. at_end: that scale is the least or the largest that was tried.
    """
    counts = [torch.bincount(labels, minlength=len(centers)) for _, labels in (shown, fit, read)]
    usable = ((counts[0] >= max(CONTEXTS)) & (counts[1] >= 5) & (counts[2] >= 5)).nonzero().squeeze(1)
    tokens = usable[counts[0][usable].argsort(descending=True, stable=True)][:MAX_NEW_TOKENS]
    if not len(tokens):
        return {"contexts": contexts, "tokens": 0}
    means = torch.stack([shown[0][shown[1] == token][:contexts].mean(0) for token in tokens])
    parts = {"fit": fit, "read": read}
    sides = {name: _normalizers(*part, logits, tokens) for name, part in parts.items()}

    own_part = means - shown[0].mean(0)
    placed = {("scaled", float(scale)): scale * means for scale in SCALES}
    placed |= {("moved", float(scale)): centers.mean(0) + scale * own_part for scale in SCALES}

    def loss(name: str, at: Tensor) -> tuple[float, float]:
        return _replaced(*sides[name], logits(parts[name][0], at), tokens)

    rule, scale = min(placed, key=lambda chosen: loss("fit", placed[chosen])[1])
    trained, _ = _replaced(*sides["read"], sides["read"][2], tokens)
    row = {"contexts": contexts, "tokens": len(tokens), "trained": trained}
    for name, at in (("as_it_is", means), ("best", placed[rule, scale])):
        row |= {name: dict(zip(("nats", "cost"), loss("read", at), strict=True))}
    row["best"] |= {"rule": rule, "scale": scale, "at_end": scale in (SCALES[0], SCALES[-1])}
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
