"""Any of our heads in any causal language model of transformers: Llama, Qwen, Mistral, GPT-NeoX and others with a
plain `lm_head`."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from harmonic_gpt.errors import InputError, reason_of
from harmonic_gpt.model.harmonic_head import HarmonicHead
from harmonic_gpt.model.heads import Head, find_head

STORED = "harmonic_head"  # in the model's config: the head, for `swap_head` after loading


@torch.no_grad()
def swap_head(
    model: PreTrainedModel,
    *,
    head: str | None = None,
    hidden_scale: float | None = None,
    learn: list[str] | None = None,
    prior: bool | None = None,
    **constants: float | None,
) -> HarmonicHead:
    """Replace a model's output embedding by one of our heads over the same weights (tied ones stay tied). Changes
    `model`.

    From then on its logits are log-probabilities (of "standard": dot products), and its loss (`labels=...`) and
    generation are the head's. The weights are saved and loaded under their old name, what the head learns beside them,
    and the head's name and constants in the config; a folder that `save_pretrained` wrote loads with `from_pretrained`
    followed by `swap_head(model)`. Resize the vocabulary before swapping: transformers would put a linear layer back.

    Args:
        head: name of one of `heads.HEADS`. Default: the stored one, else harmonic.
        hidden_scale: factor on the hidden states before the head. Default: the stored one, else for heads that measure
            distances the root mean square of the weights: hidden states behind a fresh norm layer, sqrt(D) long, are
            then as long as the centers. 1 for others.
        learn: numbers that training changes, as `HarmonicHead` has them. Default: the stored ones, else none.
        prior: whether there is a log prior. Default: as stored, else no.
        constants: the head's numbers. Default: the stored ones of the same head, else its own; the exponent sqrt(D)
            (arXiv 2502.01628, section 2).
    Returns: the head; `head(hidden_states, labels)` with shifted labels is the loss that never builds the (N, V)
    matrix.
    Raises InputError, with the model as it was: no output embedding, one with a bias, a model that changes logits after
        the head, a head or constant that does not exist, or a constant out of its range.
    """
    old = model.get_output_embeddings()
    if old is None:
        raise InputError(f"{type(model).__name__} has no output embedding to replace")
    if not isinstance(old, HarmonicHead) and getattr(old, "bias", None) is not None:
        raise InputError(f"{type(model).__name__}: its output embedding has a bias, which our heads have no use for")
    stored = getattr(model.config, STORED, None) or {}
    if head is not None and head != stored.get("head", "harmonic"):
        stored = {}
    name = head or stored.get("head", "harmonic")
    numbers = stored.get("constants", {key: stored[key] for key in ("exponent",) if key in stored})
    numbers = numbers | {key: value for key, value in constants.items() if value is not None}
    n_classes, width = old.weight.shape
    try:
        if hidden_scale is None:
            hidden_scale = stored.get("hidden_scale") or _matched_scale(find_head(name), old.weight)
        with torch.device("meta"):
            new = HarmonicHead(
                width, n_classes, head=name, constants=numbers, hidden_scale=float(hidden_scale),
                learn=stored.get("learn", []) if learn is None else learn,
                prior=stored.get("prior", False) if prior is None else prior,
            )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    saved = _saved_tensors(model, old) if stored else {}
    for key, start in new.starts():
        value = saved.get(key, start).to(old.weight.device)
        if isinstance(getattr(new, key), nn.Parameter):
            value = nn.Parameter(value)
        setattr(new, key, value)
    new.weight = old.weight
    model.set_output_embeddings(new)
    total = _total_probability(model) if name != "standard" else torch.ones(1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        model.set_output_embeddings(old)
        raise InputError(
            f"{type(model).__name__} changes its logits after the head (soft capping, a scale): that needs dot products"
        )
    own = {"head": name, "hidden_scale": new.hidden_scale, "constants": new.constants}
    setattr(model.config, STORED, own | {"learn": new.learn, "prior": new.log_prior is not None})
    return new


def _matched_scale(head: Head, weight: torch.Tensor) -> float:
    """The factor on hidden states of length sqrt(D) that makes them as long as the centers; 1 where that is no use."""
    distances = head.form is None or head.form.quantity != "dot"
    return weight.float().square().mean().sqrt().item() if distances and head.sees_scale else 1.0


def _saved_tensors(model: PreTrainedModel, old: nn.Module) -> dict[str, torch.Tensor]:
    """What the head of a model that was loaded from a folder had learned beside its weight, by the names of
    parameters: transformers has left it out, as unknown to a linear layer."""
    prefix = next((f"{name}." for name, module in model.named_modules() if module is old), "lm_head.")
    tensors = {}
    folder = Path(model.name_or_path or "/nowhere")  # a model that was not loaded has no name
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118  it is no dict
                    if key.startswith(prefix) and key != f"{prefix}weight":
                        tensors[key.removeprefix(prefix)] = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    return tensors


def _total_probability(model: PreTrainedModel) -> torch.Tensor:
    """Sum of exp(logit) over the vocabulary at a few positions: 1 for log-probabilities that nothing has touched."""
    training = {module: module.training for module in model.modules()}  # parts may be frozen in evaluation mode
    logits = model.eval()(input_ids=torch.arange(4, device=model.device)[None] % model.config.vocab_size).logits
    for module, was_training in training.items():
        module.training = was_training
    return logits.double().logsumexp(-1).exp()
