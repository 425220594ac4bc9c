"""TRL's trainers (SFT, DPO, GRPO, KTO, RLOO) for models whose logits are not a product with `lm_head.weight`.

TRL multiplies hidden states by `lm_head.weight` itself, in one function that all its trainers call. `with_own_head`
makes a trainer call the model's head in its place.
"""

import functools
import types
from contextlib import ExitStack
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from harmonic_gpt.errors import InputError
from harmonic_gpt.extras import require

# Bytes of one float32 (rows, V) matrix of logits; backward holds a few of them
CHUNK_BYTES = 64 * 2**20
HOOK = "add_fused_lm_head"


def with_own_head(trainer_class: type) -> type:
    """A subclass of one of TRL's trainers that takes log-probabilities from the model's own output embedding.

        trainer = with_own_head(SFTTrainer)(model, args=SFTConfig(...), train_dataset=...)

    For any causal language model of transformers whose output embedding, called with hidden states (..., D), returns
    logits (..., V): ours with any head, and those of `swap_head`. The (B T, V) logits are never held at once.

    Raises InputError if TRL is missing, or takes the log-probabilities of this trainer in another way than the version
    that is tested; the trainer does if PEFT has replaced the head.
    """
    require("trl", "trl")
    modules = [import_module(base.__module__) for base in trainer_class.__mro__ if base.__module__.startswith("trl.")]
    hooked = [module for module in dict.fromkeys(modules) if hasattr(module, HOOK)]
    if not hooked:
        import trl

        raise InputError(
            f"expected one of TRL's trainers that use {HOOK} (SFT, DPO, GRPO, KTO, RLOO), got {trainer_class.__name__} "
            f"of trl {trl.__version__}: install the tested version (docs/how-to/clients.md), or use "
            "transformers' Trainer"
        )

    def __init__(self, *args, **kwargs):
        # Only while the trainer is made: it gives the model its forward there
        with ExitStack() as stack:
            for module in hooked:
                stack.enter_context(patch.object(module, HOOK, _add_own_head))
            trainer_class.__init__(self, *args, **kwargs)  # type: ignore[misc]

    return type(trainer_class.__name__, (trainer_class,), {"__init__": __init__})


def _add_own_head(
    model: Any,
    temperature: float = 1.0,
    cast_lm_head_to_fp32: bool = False,  # noqa: ARG001  distances are in float32 anyway
    outputs: tuple[str, ...] = ("log_probs",),
) -> None:
    """What TRL's function of the same arguments does (trl.trainer.utils, version 1.16): with `fused_lm_head=True` the
    model's forward returns statistics of each target in place of logits."""
    from trl.trainer.utils import FusedCausalLMOutput

    _check_kept(model.get_output_embeddings())
    original = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self, *args, fused_lm_head=False, labels=None, shift_labels=None, num_items_in_batch=None, **kwargs):
        if not fused_lm_head:
            given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return original(*args, **kwargs, **{name: value for name, value in given.items() if value is not None})
        hidden_states = self.base_model(*args, **(kwargs | {"use_cache": False})).last_hidden_state  # (B, T, D)
        if shift_labels is None:
            hidden_states, shift_labels = hidden_states[:, :-1], labels[:, 1:]
        shift_labels = shift_labels.to(hidden_states.device)
        mask = shift_labels != -100
        statistics = _statistics(
            self.get_output_embeddings(), hidden_states[mask], shift_labels[mask], temperature, outputs
        )
        # masked_scatter stays connected to the model even where no label is kept
        spread = {name: row.new_zeros(mask.shape).masked_scatter(mask, row) for name, row in statistics.items()}
        n_items = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(loss=-spread["log_probs"].sum() / n_items, label_mask=mask, **spread)

    model.forward = types.MethodType(forward, model)


def _check_kept(head: Any) -> None:
    """Raises InputError where PEFT has put an nn.Linear in the place of a head that is to be trained and saved."""
    kept = getattr(head, "modules_to_save", {}).values()  # of a wrapper of PEFT
    replaced = [type(module).__name__ for module in kept if type(module) is not type(head.original_module)]
    if replaced:
        raise InputError(
            f"expected the head to stay a {type(head.original_module).__name__}, got {replaced[0]} from PEFT, which "
            "computes dot products: set ensure_weight_tying=False in the PEFT config"
        )


def _statistics(
    head: Any, hidden_states: Tensor, targets: Tensor, temperature: float, outputs: tuple[str, ...]
) -> dict[str, Tensor]:
    """Per row of hidden_states (N, D) with targets (N,): "log_probs" and what else `outputs` names, each (N,).

    A chunk of rows at a time, whose logits are formed again for the gradients.
    """

    def chunk(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        logits = head(x).float() / temperature  # (rows, V)
        log_p = logits.log_softmax(-1)
        result = {"log_probs": log_p.gather(-1, y[:, None])[:, 0]}
        if "entropy" in outputs:
            result["entropy"] = -(log_p.exp() * log_p).sum(-1)
        with torch.no_grad():
            if "log_sum_sq_probs" in outputs:
                result["log_sum_sq_probs"] = (2 * log_p).logsumexp(-1)
            if "mean_logits" in outputs:
                result["mean_logits"] = logits.mean(-1)
            if "is_top1" in outputs:
                result["is_top1"] = logits.argmax(-1) == y
        names[:] = result
        return tuple(result.values())

    names: list[str] = []
    rows = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    pieces = [
        checkpoint(chunk, x, y, use_reentrant=False, preserve_rng_state=False)
        for x, y in zip(hidden_states.split(rows), targets.split(rows), strict=True)
    ]
    return dict(zip(names, map(torch.cat, zip(*pieces, strict=True)), strict=True))
