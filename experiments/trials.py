"""Small changes to a run between `setup` and `fit`: what experiments try and the product does not offer (yet).

A trial that pays becomes a setting of the product, with its gradient in the chunked loss; one that does not is deleted
with a line in docs/recipe.md. In a queue file the setting `trial.NAME` asks for it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rare_tokens import token_counts
from torch import nn

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.training.optimizer import learning_rate
from harmonic_gpt.training.run import Run


def apply_trial(run: Run, trial: dict) -> Callable[[], dict]:
    """Apply `trial`, a dict from names in TRIALS to their values. Returns what measures, after training, what it did.

    Raises InputError for a name that is not in TRIALS.
    """
    if unknown := trial.keys() - TRIALS.keys():
        raise InputError(f"unknown trial {', '.join(sorted(unknown))}; expected one of {', '.join(TRIALS)}")
    measures = [TRIALS[name](run, value) for name, value in trial.items()]
    return lambda: {name: value for measure in measures if measure for name, value in measure().items()}


def _train_apart(run: Run, parameter: nn.Parameter, lr_scale: float) -> None:
    """Train a parameter that is not the model's, at lr_scale times the learning rate, with an AdamW of its own.

    It is no group of the run's optimizer, which may be Muon and AdamW in one; its gradient is not clipped.
    """
    optim = run.config.optim
    adamw = torch.optim.AdamW([parameter], betas=optim.betas, eps=optim.eps, weight_decay=0.0, fused=True)

    def step(*_):  # run.step still is the number of the update that was just made
        adamw.param_groups[0]["lr"] = learning_rate(run.step, run.config.train.steps, optim) * lr_scale
        adamw.step()
        adamw.zero_grad()

    run.optimizer.optimizer.register_step_post_hook(step)  # accelerate's wrapper hides the hooks


def anneal_exponent(run: Run, ends: list[float]) -> Callable[[], dict]:
    """n from ends[0] to ends[1] over training, linear in log n."""
    head, (first, last) = run.bare_model.lm_head, ends

    def move(*_):
        progress = (run.step + 1) / run.config.train.steps
        head.spec = head.spec._replace(exponent=first * (last / first) ** progress)

    head.spec = head.spec._replace(exponent=first)
    run.optimizer.optimizer.register_step_post_hook(move)
    return lambda: {"exponent": head.spec.exponent}


def learn_exponent(run: Run, lr_scale: float) -> Callable[[], dict]:
    """log n is a parameter, with lr_scale times the learning rate. Builds all logits: enough for a first look."""
    head = run.bare_model.lm_head
    log_exponent = nn.Parameter(torch.tensor(math.log(head.spec.exponent)))
    _train_apart(run, log_exponent, lr_scale)

    def forward(hidden_states, labels=None, reduction="mean", **_):
        x = hidden_states * head.hidden_scale
        # d z / d n = z / n: take the logits at n = 1, so that the exponent itself is differentiated
        logits = log_exponent.exp() * head_logits(x, head.weight, exponent=1.0)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)

    head.forward = forward
    return lambda: {"exponent": log_exponent.exp().item()}


def learn_temperature(run: Run, lr_scale: float) -> Callable[[], dict]:
    """The standard head's counterpart: logits times a learned factor, from 1."""
    head = run.bare_model.lm_head
    log_factor = nn.Parameter(torch.zeros(()))
    _train_apart(run, log_factor, lr_scale)

    def forward(hidden_states, labels=None, reduction="mean", **_):
        logits = log_factor.exp() * head_logits(hidden_states * head.hidden_scale, head.weight, **head.spec._asdict())
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)

    head.forward = forward
    return lambda: {"temperature": log_factor.exp().item()}


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


def frequency_bias(run: Run, lr_scale: float) -> Callable[[], dict]:
    """p_i ~ pi_i d_i^-n (standard: pi_i exp(s_i)): the head has a bias that starts at the tokens' log frequencies.

    lr_scale 0: it stays there. Builds all logits: enough for a first look.
    """
    head = run.bare_model.lm_head
    start = _log_frequencies(run)
    bias = nn.Parameter(start.clone())
    _train_apart(run, bias, lr_scale)

    def forward(hidden_states, labels=None, reduction="mean", **_):
        logits = bias + head_logits(hidden_states * head.hidden_scale, head.weight, **head.spec._asdict())
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)

    head.forward = forward
    return lambda: {"bias moved": (bias - start).square().mean().sqrt().item()}


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
        if head.spec.normalization == "harmax":
            squared = (1 + size**2) * ((log_share.max() - log_share) * 2 / head.spec.exponent).exp() - 1
            head.weight.mul_((squared.sqrt() / head.weight.norm(dim=1))[:, None])
        else:
            generator = torch.Generator().manual_seed(run.config.seed)
            direction = F.normalize(torch.randn(ln_f.bias.shape, generator=generator), dim=0)
            along = (log_share - log_share.mean()) / log_share.std() * size * head.weight.norm(dim=1).mean()
            ln_f.bias.copy_(direction * (log_share.std() / (size * head.weight.norm(dim=1).mean() * head.hidden_scale)))
            head.weight.add_(along[:, None] * direction)


def label_smoothing(run: Run, share: float) -> None:
    """`share` of the target's probability is spread over all tokens, in training alone. Builds all logits."""
    head = run.bare_model.lm_head

    def forward(hidden_states, labels=None, reduction="mean", **_):
        logits = head_logits(hidden_states * head.hidden_scale, head.weight, **head.spec._asdict())
        smoothing = share if head.training else 0.0
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction, label_smoothing=smoothing)

    head.forward = forward


TRIALS = {
    f.__name__: f
    for f in (
        anneal_exponent,
        learn_exponent,
        learn_temperature,
        random_signs,
        input_std,
        frequency_bias,
        frequency_start,
        label_smoothing,
    )
}
