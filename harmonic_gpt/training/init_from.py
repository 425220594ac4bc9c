"""Start from the weights of another GPT-2: the same head as it is, a Euclidean head fitted to the trunk before the
first step.

A standard model scores a token by h.w, a harmonic one by the distance of s (h + c) from w. Trunk and centers w stay;
the scale s (`hidden_scale`), the shift c (into the bias of the final layer norm, which the head alone reads) and, if
asked, the exponent n are chosen so that the loss on a few training batches is as low as can be. One bound is needed: as
s grows with n = s |h|^2, the harmonic head becomes the standard one (-n log ||s h - w|| -> h.w + const) and its rows
stop being centers of anything. So n goes up to 2 n_embd, the largest exponent that has been published (the code of
arXiv 2502.01628).
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from harmonic_gpt.data.sampler import Sampler
from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.errors import InputError
from harmonic_gpt.model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from harmonic_gpt.model.harmonic_head import HarmonicHead
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.runs.load import load_model

FIT_TOKENS = 4096
FITTED = ("harmonic", "euclidean_softmax")
CHUNK = 512  # tokens whose logits are in memory at once

GPT2: TypeAlias = GPT2LMHeadModel | HarmonicGPT2ForCausalLM


@dataclass
class HeadStart:
    """What the fit chose, and the loss in nats per token of each attempt."""

    hidden_scale: float
    exponent: float
    shift: Tensor  # (D,), in main memory
    tried: dict[str, float]


def start_from(
    config: RunConfig,
    target: HarmonicGPT2Config,
    folder: TokenFolder,
    accelerator: Accelerator,
    log_prior: Tensor | None = None,
) -> tuple[HarmonicGPT2ForCausalLM, str]:
    """(a model with `target`'s head and the weights of `config.model.init_from`, what was done). Completes `target`.

    log_prior: (V,), the one that `config.model.prior` names. The same head goes on with its own, if it has one.

    Deterministic, and the same on every rank: the first one fits a new head, and the others take over what it found.
    Collective. Raises InputError: the weights are no GPT-2, or of another size or vocabulary than the run's, or their
    head has other constants.
    """
    name = config.model.init_from
    assert name is not None
    loaded = load_model(name)
    source = loaded.model
    if not isinstance(source, GPT2):
        raise InputError(f"model.init_from: {name} is a {type(source).__name__}; expected a GPT-2")
    if loaded.tokenizer is not None:
        folder.check_tokenizer(loaded.tokenizer)
    _adopt(source.config, target, name)
    own = head if isinstance(head := source.get_output_embeddings(), HarmonicHead) else None
    if target.head == ("standard" if own is None else own.name):
        _keep_head(own, target, config)
        model = _with_weights(source, target, with_head=True)
        done = f"{name}, going on with its {target.head} head{_constants(target)}"
        if own is not None and own.has_prior:
            log_prior, done = None, f"{done} and its prior"
    else:
        if target.head not in FITTED:
            raise InputError(f"model.init_from: only {' and '.join(FITTED)} can be fitted to other weights")
        start = None
        if accelerator.is_main_process:
            blocks = math.ceil(FIT_TOKENS / target.n_positions)
            batch = Sampler(folder.tokens("train"), target.n_positions, blocks, config.seed).batch(0)  # (B, T + 1)
            ids = torch.from_numpy(batch).to(accelerator.device)
            source.to(accelerator.device)
            start = fit_head(source, ids, target, fit_exponent=config.model.exponent == "fit", log_prior=log_prior)
        start = broadcast_object_list([start])[0]
        target.hidden_scale, target.exponent = start.hidden_scale, start.exponent
        model = _with_weights(source, target, with_head=False)
        model.transformer.ln_f.bias.data.add_(start.shift)
        tried = ", ".join(f"{attempt} {loss:.3f}" for attempt, loss in start.tried.items())
        done = (
            f"{name}; the head starts with hidden_scale {start.hidden_scale:g}{_constants(target)}; nats per token: "
            f"{tried}"
        )
    if log_prior is not None:
        model.lm_head.log_prior.data.copy_(log_prior)
    return model, done


def _keep_head(own: HarmonicHead | None, target: HarmonicGPT2Config, config: RunConfig) -> None:
    """Fine-tuning: the numbers of the head belong to the weights, as they are after training. `own` is None for a plain
    GPT-2. Raises InputError for a setting that contradicts them."""
    numbers = {"temperature": 1.0} if own is None else dict(own.spec.constants)
    asked = dict(config.model.head_constants)
    if not isinstance(config.model.exponent, str):
        asked["exponent"] = config.model.exponent
    for key, value in asked.items():
        if key in numbers and value != numbers[key]:
            undo = "--model.exponent=sqrt" if key == "exponent" else "--model.head_constants={}"
            raise InputError(
                f"model.init_from: {config.model.init_from} goes on with the {key} {numbers[key]} of its weights, got "
                f"{value}; leave it out, or undo a file's value with {undo}"
            )
    target.exponent = numbers.pop("exponent", target.exponent)
    target.head_constants = numbers
    target.hidden_scale = 1.0 if own is None else own.hidden_scale
    target.prior = target.prior or (own is not None and own.has_prior)


def _constants(target: HarmonicGPT2Config) -> str:
    return "".join(f", {key} {value:g}" for key, value in target.head_spec.constants.items())


def _adopt(source, target: HarmonicGPT2Config, name: str) -> None:
    """Take over what the weights imply and no setting can change; refuse settings that contradict them."""
    needed = [
        f"--model.{key}={getattr(source, key)}"
        for key in ("n_layer", "n_head", "n_embd")
        if getattr(source, key) != getattr(target, key)
    ]
    if source.n_positions < target.n_positions:
        needed.append(f"--model.n_positions={source.n_positions}")
    if target.tie_word_embeddings and not source.tie_word_embeddings:
        needed.append("--model.tie_word_embeddings=false")
    if needed:
        raise InputError(f"model.init_from: {name} needs {' '.join(needed)}")
    if source.vocab_size != target.vocab_size:
        raise InputError(
            f"model.init_from: {name} knows {source.vocab_size} tokens, the data has {target.vocab_size}: "
            "use its tokenizer"
        )
    if source.n_inner not in (None, 4 * source.n_embd):
        raise InputError(
            f"model.init_from: {name} has hidden layers of n_inner {source.n_inner}; expected 4 n_embd = "
            f"{4 * source.n_embd}, the only size that a run trains: start from other weights"
        )
    target.layer_norm_epsilon = source.layer_norm_epsilon
    target.scale_attn_weights = source.scale_attn_weights
    target.scale_attn_by_inverse_layer_idx = source.scale_attn_by_inverse_layer_idx
    # gelu_new is the same function as gelu_pytorch_tanh, in more passes
    target.activation_function = {"gelu_new": "gelu_pytorch_tanh"}.get(
        source.activation_function, source.activation_function
    )


@torch.no_grad()
def _with_weights(source: GPT2, target: HarmonicGPT2Config, *, with_head: bool) -> HarmonicGPT2ForCausalLM:
    """`source` may have more positions, and may tie weights that `target` keeps apart.

    with_head: take over what the head has beside its centers too. What `source` lacks of that starts as asked.
    """
    model, weights = HarmonicGPT2ForCausalLM(target), source.state_dict()
    for name, tensor in model.state_dict().items():
        beside = name.startswith("lm_head.") and name != "lm_head.weight"
        if not beside or (with_head and name in weights):
            tensor.copy_(weights[name][: len(tensor)])
    return model


def fit_head(
    source: GPT2, ids: Tensor, target: HarmonicGPT2Config, *, fit_exponent: bool, log_prior: Tensor | None = None
) -> HeadStart:
    """Scale, shift and exponent of a Euclidean head on the hidden states of a trunk that was trained with another head.

    Args:
        ids: (B, T + 1) training tokens.
        fit_exponent: choose n too, up to 2 n_embd; otherwise it is `target`'s.
        log_prior: (V,), which the head adds to its logits. Its other constants are `target`'s.
    """
    labels = ids[:, 1:].flatten()  # (N,)
    centers = source.lm_head.weight.detach().float()  # (V, D)
    with torch.no_grad():
        hidden = torch.cat([source.transformer(row[None, :-1]).last_hidden_state[0].float() for row in ids])  # (N, D)
        own = [F.cross_entropy(source(row[None, :-1]).logits[0].float(), row[1:]).item() for row in ids]
    constants: dict[str, Any] = dict(target.head_spec.constants)
    has_exponent = "exponent" in constants
    fit_exponent = fit_exponent and has_exponent
    n_max = 2 * target.n_embd if fit_exponent else target.head_exponent
    if log_prior is not None:
        log_prior = log_prior.to(hidden.device)

    def loss(log_s: Tensor, log_n: Tensor, shift: Tensor, tokens: int = len(labels)) -> float:
        """Mean over the leading tokens; gradients are added up where the arguments want them."""
        total = 0.0
        for i in range(0, tokens, CHUNK):
            y = labels[i : i + CHUNK]
            x = (hidden[i : i + CHUNK] + shift) * log_s.clamp(max=log_s_max).exp()
            exponent = {"exponent": log_n.clamp(max=math.log(n_max)).exp()} if has_exponent else {}
            z = head_logits(x, centers, head=target.head, log_prior=log_prior, **constants | exponent)
            part = F.cross_entropy(z, y, reduction="sum") / tokens
            if part.requires_grad:
                part.backward()
            total += part.item()
        return total

    def tensor(value: float) -> Tensor:
        return torch.tensor(math.log(value), device=hidden.device)

    ratio = (centers.norm(dim=1).mean() / hidden.norm(dim=1).mean()).item()
    # Under the softmax of distances the loss may fall for ever, ever more slowly, as s grows
    log_s_max = math.log(ratio * 2**7)
    zero = torch.zeros_like(hidden[0])
    n = target.head_exponent
    tried = {"source model": sum(own) / len(own), "norms matched": loss(tensor(ratio), tensor(n), zero)}
    # The loss has several valleys in s: look around before walking down
    exponents = [n * 2**k for k in range(9) if n * 2**k <= n_max] if fit_exponent else [n]
    grid = [(ratio * 2**k, exponent) for exponent in exponents for k in range(-3, 8)]
    s, n = min(grid, key=lambda pair: loss(tensor(pair[0]), tensor(pair[1]), zero, CHUNK))
    log_s, log_n, shift = tensor(s).requires_grad_(), tensor(n), zero.clone()
    if fit_exponent:
        log_n.requires_grad_()
    for attempt, shifted in (
        ("scale" if not log_n.requires_grad else "scale and exponent", False),
        ("and shift", True),
    ):
        shift.requires_grad_(shifted)
        free = [p for p in (log_s, log_n, shift) if p.requires_grad]
        optimizer = torch.optim.LBFGS(free, max_iter=40, line_search_fn="strong_wolfe")

        def closure(optimizer=optimizer) -> float:
            optimizer.zero_grad()
            return loss(log_s, log_n, shift)

        optimizer.step(closure)
        tried[attempt] = closure()
    # Six digits: constants of the config, which people read
    s, n = (float(f"{value:.6g}") for value in (math.exp(min(log_s.item(), log_s_max)), min(log_n.exp().item(), n_max)))
    return HeadStart(s, n, shift.detach().cpu(), tried)
