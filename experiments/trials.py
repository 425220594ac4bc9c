"""Small changes to a run between `setup` and `fit`: what experiments try and the product does not offer (yet), and
measures that need the run.

A trial that pays becomes a setting of the product, with its gradient in the chunked loss; one that does not is deleted
with a line in docs/results/prediction.md. In a queue file the setting `trial.NAME` asks for it.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from rare_tokens import EDGES, by_frequency, token_counts

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import head_input
from harmonic_gpt.training.run import Run


def apply_trial(run: Run, trial: dict) -> Callable[[], dict]:
    """Apply `trial`, a dict from names in TRIALS to their values. Returns what measures, after training, what it did.

    Raises InputError for a name that is not in TRIALS.
    """
    if unknown := trial.keys() - TRIALS.keys():
        raise InputError(f"unknown trial {', '.join(sorted(unknown))}; expected one of {', '.join(TRIALS)}")
    measures = [TRIALS[name](run, value) for name, value in trial.items()]
    return lambda: {name: value for measure in measures if measure for name, value in measure().items()}


def anneal_exponent(run: Run, ends: list[float]) -> Callable[[], dict]:
    """n from ends[0] to ends[1] over training, linear in log n."""
    head, (first, last) = run.bare_model.lm_head, ends

    def move(*_):
        progress = (run.step + 1) / run.config.train.steps
        head.constants["exponent"] = first * (last / first) ** progress

    head.constants["exponent"] = first
    run.optimizer.optimizer.register_step_post_hook(move)
    return lambda: {"exponent": head.spec.exponent}


def random_signs(run: Run, _: bool) -> None:
    """The final layer norm's gain starts at +1 or -1 at random.

    With tied embeddings a fresh trunk hands the input token's own embedding to the head, which then predicts that the
    token repeats itself; random signs make the start uninformed instead.
    """
    gain = run.bare_model.transformer.ln_f.weight
    generator = torch.Generator().manual_seed(run.config.seed)
    with torch.no_grad():
        gain.mul_(torch.randint(0, 2, gain.shape, generator=generator) * 2 - 1)


def input_std(run: Run, std: float) -> None:
    """Untied: the token embedding starts at this std (0.02 otherwise)."""
    with torch.no_grad():
        weight = run.bare_model.transformer.wte.weight
        weight.mul_(std / weight.std())


def _log_frequencies(run: Run) -> torch.Tensor:
    """(V,) float32: log of the tokens' share of the training text, one added to every count."""
    counts = torch.from_numpy(token_counts(run.data, run.bare_model.config.vocab_size)).double() + 1
    return (counts / counts.sum()).log().float()


def frequency_start(run: Run, size: float) -> None:
    """Centers start where the untrained model gives every token about its share of the training text. Untied only.

    Harmonic: the most frequent token's center has norm `size` (hidden states have 1), rarer ones lie farther out: at
    right angles to the hidden state d^2 = 1 + |c|^2, and d^-n is to be the share. Standard: the final layer norm's bias
    starts along a random direction, and the centers have their log share along it, `size` times the norm of the rest
    on average (root mean square).
    """
    head, ln_f = run.bare_model.lm_head, run.bare_model.transformer.ln_f
    log_share = _log_frequencies(run)
    with torch.no_grad():
        if head.spec.exponent is not None:
            squared = (1 + size**2) * ((log_share.max() - log_share) * 2 / head.spec.exponent).exp() - 1
            head.weight.mul_((squared.sqrt() / head.weight.norm(dim=1))[:, None])
        else:
            generator = torch.Generator().manual_seed(run.config.seed)
            direction = F.normalize(torch.randn(ln_f.bias.shape, generator=generator), dim=0)
            along = (log_share - log_share.mean()) / log_share.std() * size * head.weight.norm(dim=1).mean()
            ln_f.bias.copy_(direction * (log_share.std() / (size * head.weight.norm(dim=1).mean() * head.hidden_scale)))
            head.weight.add_(along[:, None] * direction)


def decay_to_length(run: Run, length: float) -> None:
    """Untied: weight decay pulls each center to this length, along itself, in place of zero."""
    optimizer, centers = run.optimizer.optimizer, run.bare_model.lm_head.weight
    (group,) = [group for group in optimizer.param_groups if any(p is centers for p in group["params"])]

    @torch.no_grad()
    def pull_back(*_):  # decay has taken lr x weight decay of each center, of which `length` is given back
        centers.add_(F.normalize(centers, dim=1), alpha=group["lr"] * group["weight_decay"] * length)

    optimizer.register_step_post_hook(pull_back)


def watch_growth(run: Run, every: int) -> Callable[[], dict]:
    """Changes nothing: every so many steps, lengths and logits of the first validation tokens."""
    rows: list[dict] = []

    def look(*_):
        if (run.step + 1) % every == 0:
            rows.append({"step": run.step + 1} | lengths_and_logits(run))

    run.optimizer.optimizer.register_step_post_hook(look)
    return lambda: {"growth": rows}


@torch.no_grad()
def lengths_and_logits(run: Run, tokens: int = 2048) -> dict[str, float]:
    """Mean length of the centers and of the hidden states that the head reads; of a position's logits the standard
    deviation over the vocabulary, and the largest above their mean, mean over positions."""
    model, block = run.bare_model, run.config.model.n_positions
    blocks = min(tokens, len(run.validation)) // block
    ids = torch.from_numpy(run.validation.read(0, blocks * block).astype("int64")).view(blocks, block)
    was_training = model.training
    model.eval()
    last = model.transformer(ids).last_hidden_state  # (blocks, block, D)
    logits = model.lm_head(last)
    model.train(was_training)
    return {
        "center_length": model.lm_head.weight.norm(dim=1).mean().item(),
        "hidden_length": head_input(model, last).norm(dim=-1).mean().item(),
        "logit_std": logits.std(dim=-1).mean().item(),
        "largest_logit": (logits.amax(dim=-1) - logits.mean(dim=-1)).mean().item(),
    }


def watch_frequencies(run: Run, tokens: int) -> Callable[[], dict]:
    """Changes nothing: the trained model's loss by how often the target occurs in the training text (rare_tokens.py),
    over so many leading validation tokens. losses: nats per target of each class, None without a target; rare: of all
    targets that occur 1 to 99 times."""

    def measure() -> dict:
        model, block = run.bare_model, run.config.model.n_positions
        count = min(tokens, len(run.validation) - 1) // block
        ids = torch.from_numpy(run.validation.read(0, count * block + 1).astype("int64"))
        blocks = ids.unfold(0, block + 1, block)  # (count, block + 1)
        classes = torch.from_numpy(np.digitize(token_counts(run.data, model.config.vocab_size), EDGES))
        was_training = model.training
        model.eval()
        found = by_frequency(model, blocks, classes)
        model.train(was_training)
        nats, targets = found["losses"].sum(0), found["targets"].sum(0)
        losses = [n / t if t else None for n, t in zip(nats.tolist(), targets.tolist(), strict=True)]
        rare = float(nats[1:3].sum() / max(targets[1:3].sum(), 1))
        return {"by_frequency": {"losses": losses, "targets": targets.astype(int).tolist(), "rare": rare}}

    return measure


TRIALS = {
    f.__name__: f
    for f in (
        anneal_exponent,
        random_signs,
        input_std,
        frequency_start,
        decay_to_length,
        watch_growth,
        watch_frequencies,
    )
}
