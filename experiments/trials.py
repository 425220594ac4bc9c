"""Small changes to a run between `setup` and `fit`: what experiments try and the product does not offer (yet), and
measures that need the run.

A trial that pays becomes a setting of the product, with its gradient in the chunked loss; one that does not is deleted
with a line in docs/results/prediction.md or docs/archive/. In a queue file the setting `trial.NAME` asks for it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rare_tokens import rare_words

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import head_input
from harmonic_gpt.training.optimizer import freeze
from harmonic_gpt.training.run import Run


def apply_trial(run: Run, trial: dict) -> Callable[[], dict]:
    """Apply `trial`, a dict from names in TRIALS to their values. Returns what measures, after training, what it did.

    Raises InputError for a name that is not in TRIALS.
    """
    if unknown := trial.keys() - TRIALS.keys():
        raise InputError(f"unknown trial {', '.join(sorted(unknown))}; expected one of {', '.join(TRIALS)}")
    measures = [TRIALS[name](run, value) for name, value in trial.items()]
    return lambda: {name: value for measure in measures if measure for name, value in measure().items()}


def input_std(run: Run, std: float) -> None:
    """Untied: the token embedding starts at this std (0.02 otherwise)."""
    with torch.no_grad():
        weight = run.bare_model.transformer.wte.weight
        weight.mul_(std / weight.std())


def decay_to_length(run: Run, length: float) -> None:
    """Untied: weight decay pulls each center to this length, along itself, in place of zero."""
    optimizer, centers = run.optimizer.optimizer, run.bare_model.lm_head.weight
    (group,) = [group for group in optimizer.param_groups if any(p is centers for p in group["params"])]

    @torch.no_grad()
    def pull_back(*_):  # decay has taken lr x weight decay of each center, of which `length` is given back
        centers.add_(F.normalize(centers, dim=1), alpha=group["lr"] * group["weight_decay"] * length)

    optimizer.register_step_post_hook(pull_back)


def fixed_gain(run: Run, _: bool) -> None:
    """The final layer norm keeps the gain and bias that it starts with, so that hidden states keep their length."""
    freeze(run.bare_model, ["transformer.ln_f"])


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


def watch_rare(run: Run, start: int) -> Callable[[], dict]:
    """Changes nothing: what the trained model makes of tokens that are rare in the corpus (rare_tokens.py), on the
    validation text from token `start` on."""
    return lambda: {"rare": rare_words(run.bare_model, run.data, start, run.config.model.n_positions)}


TRIALS = {f.__name__: f for f in (input_std, decay_to_length, fixed_gain, watch_growth, watch_rare)}
