"""The harmonic head in any causal language model of transformers: Llama, Qwen, Mistral, GPT-NeoX and others with a
plain `lm_head`."""

import math

import torch
from transformers import PreTrainedModel

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.harmonic_head import HarmonicHead

STORED = "harmonic_head"  # in the model's config: the head's constants, for `swap_head` after loading


@torch.no_grad()
def swap_head(
    model: PreTrainedModel, *, exponent: float | None = None, hidden_scale: float | None = None
) -> HarmonicHead:
    """Replace a model's output embedding by a harmonic head over the same weights (tied ones stay tied). Changes
    `model`.

    From then on its logits are log-probabilities, its loss (`labels=...`) and generation are harmonic. The weights are
    saved and loaded under their old name, the head's constants in the config; a folder that `save_pretrained` wrote
    loads with `from_pretrained` followed by `swap_head(model)`. Resize the vocabulary before swapping: transformers
    would put a linear layer back.

    Args:
        exponent: harmonic exponent n on the distance. Default: the stored one, else sqrt(D) (arXiv 2502.01628,
            section 2).
        hidden_scale: factor on the hidden states before distances. Default: the stored one, else the root mean square
            of the weights: hidden states behind a fresh norm layer, sqrt(D) long, are then as long as the centers.
    Returns: the head; `head(hidden_states, labels)` with shifted labels is the loss that never builds the (N, V)
    matrix.
    Raises InputError, with the model as it was: no output embedding, one with a bias, a model that changes logits after
        the head, or a constant that is not positive.
    """
    old = model.get_output_embeddings()
    if old is None:
        raise InputError(f"{type(model).__name__} has no output embedding to replace")
    if getattr(old, "bias", None) is not None:
        raise InputError(f"{type(model).__name__}: its output embedding has a bias, which distances have no use for")
    stored = getattr(model.config, STORED, None) or {}
    n_classes, width = old.weight.shape
    n = stored.get("exponent", width**0.5) if exponent is None else exponent
    if hidden_scale is None:
        hidden_scale = stored.get("hidden_scale") or old.weight.float().square().mean().sqrt()
    n, scale = float(n), float(hidden_scale)
    for name, value in (("exponent", n), ("hidden_scale", scale)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}: expected a positive number, got {value}")
    with torch.device("meta"):
        head = HarmonicHead(width, n_classes, exponent=n, hidden_scale=scale)
    head.weight = old.weight
    model.set_output_embeddings(head)
    total = _total_probability(model)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        model.set_output_embeddings(old)
        raise InputError(
            f"{type(model).__name__} changes its logits after the head (soft capping, a scale): that needs dot products"
        )
    setattr(model.config, STORED, {"exponent": n, "hidden_scale": scale})
    return head


def _total_probability(model: PreTrainedModel) -> torch.Tensor:
    """Sum of exp(logit) over the vocabulary at a few positions: 1 for log-probabilities that nothing has touched."""
    training = {module: module.training for module in model.modules()}  # parts may be frozen in evaluation mode
    logits = model.eval()(input_ids=torch.arange(4, device=model.device)[None] % model.config.vocab_size).logits
    for module, was_training in training.items():
        module.training = was_training
    return logits.double().logsumexp(-1).exp()
