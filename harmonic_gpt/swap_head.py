"""Any of our heads in any causal language model of transformers: Llama, Qwen, Mistral, GPT-NeoX and others with a
plain `lm_head`."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

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
    revision: str | None = None,
    **constants: float | None,
) -> HarmonicHead:
    """Replace a model's output embedding by one of our heads over the same weights (tied ones stay tied). Changes
    `model`.

    From then on its logits are log-probabilities (of "standard": dot products), and its loss (`labels=...`) and
    generation are the head's. The weights are saved and loaded under their old name, what the head learns beside them,
    and the head's name and constants in the config; what `save_pretrained` wrote, a folder or a model on the Hub, loads
    with `from_pretrained` followed by `swap_head(model)`. Swapping again keeps what the same head has learned. Resize
    the vocabulary before swapping: transformers would put a linear layer back.

    Args:
        head: name of one of `heads.HEADS`. Default: the stored one, else harmonic.
        hidden_scale: factor on the hidden states before the head. Default: the stored one, else for heads that measure
            distances the root mean square of the weights: hidden states behind a fresh norm layer, sqrt(D) long, are
            then as long as the centers. 1 for others.
        learn: numbers that training changes, as `HarmonicHead` has them. Default: the stored ones, else none.
        prior: whether there is a log prior. Default: as stored, else no.
        revision: of a model from the Hub, the one that `from_pretrained` was given; transformers keeps no note of it.
            What the head has learned is read from there.
        constants: the head's numbers. Default: those of the same head, as it has learned them, else its own; the
            exponent sqrt(D) (arXiv 2502.01628, section 2).
    Returns: the head; `head(hidden_states, labels)` with shifted labels is the loss that never builds the (N, V)
    matrix.
    Raises InputError, with the model as it was: no output embedding, one with a bias, a model that changes logits after
        the head, a head or constant that does not exist, a constant out of its range, or what the stored head has
        learned is not found.
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
    given = {key: value for key, value in {"hidden_scale": hidden_scale, **constants}.items() if value is not None}
    was_learned = stored.get("learn", [])
    learn = was_learned if learn is None else learn
    n_classes, width = old.weight.shape
    try:
        saved = _learned_tensors(model, old, stored, revision)
        # Numbers that are no longer learned stay where they are
        now = {key: saved[f"log_{key}"].exp().item() for key in was_learned if key not in (*learn, "prior")}
        numbers = stored.get("constants", {key: stored[key] for key in ("exponent",) if key in stored}) | now | given
        scale = numbers.pop("hidden_scale", stored.get("hidden_scale"))
        if scale is None:
            scale = _matched_scale(find_head(name), old.weight)
        with torch.device("meta"):
            new = HarmonicHead(
                width, n_classes, head=name, constants=numbers, hidden_scale=float(scale), learn=learn,
                prior=stored.get("prior", False) if prior is None else prior,
            )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    for key, start in new.starts():
        kept = key in saved and key.removeprefix("log_") not in given
        value = (saved[key] if kept else start).to(old.weight.device)
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


def _learned_tensors(
    model: PreTrainedModel, old: nn.Module, stored: dict, revision: str | None
) -> dict[str, torch.Tensor]:
    """What the `stored` head has learned beside its weight, by the names of parameters: from `old` if it is that head,
    else from the files that the model was loaded from. transformers has left it out, as unknown to a linear layer.

    Raises InputError if any of it is not found.
    """
    names = {f"log_{name}" for name in stored.get("learn", [])} | ({"log_prior"} if stored.get("prior") else set())
    names |= find_head(stored.get("head", "harmonic")).weights.keys()
    if not names:
        return {}
    tensors = old.state_dict() if isinstance(old, HarmonicHead) else {}
    if not names <= tensors.keys():
        prefix = next((f"{name}." for name, module in model.named_modules() if module is old), "lm_head.")
        found = _tensors_on_disk(model.name_or_path or "", revision, {prefix + name for name in names})
        tensors = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    if missing := names - tensors.keys():
        raise InputError(
            f"what the {stored.get('head')} head of this model has learned ({', '.join(sorted(missing))}) is not in "
            f"the safetensors files of {model.name_or_path or 'a model that was not loaded'}; load what "
            f"save_pretrained wrote, with its revision on the Hub, or delete model.config.{STORED} to start with a new "
            "head"
        )
    return {name: tensors[name] for name in names}


def _tensors_on_disk(place: str, revision: str | None, names: set[str]) -> dict[str, torch.Tensor]:
    """Those tensors of these names that a folder or a repository on the Hub has; none if `place` is "".

    Raises InputError for files that cannot be read.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        for path in weight_files(place, revision) if place else ():
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in names.intersection(file.keys())}
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights of {place} cannot be read: {reason_of(error)}") from error
    return tensors


def weight_files(place: str, revision: str | None = None) -> list[str]:
    """The safetensors files of a folder, or of a repository on the Hub, which are in the cache if the model was loaded
    from it. Raises OSError."""
    if Path(place).is_dir():
        return [str(path) for path in sorted(Path(place).glob("*.safetensors"))]

    def find(name: str) -> str | None:
        return cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    names = [SAFE_WEIGHTS_NAME]
    if find(SAFE_WEIGHTS_NAME) is None and (index := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for name in names if (path := find(name)) is not None]


def _total_probability(model: PreTrainedModel) -> torch.Tensor:
    """Sum of exp(logit) over the vocabulary at a few positions: 1 for log-probabilities that nothing has touched."""
    training = {module: module.training for module in model.modules()}  # parts may be frozen in evaluation mode
    logits = model.eval()(input_ids=torch.arange(4, device=model.device)[None] % model.config.vocab_size).logits
    for module, was_training in training.items():
        module.training = was_training
    return logits.double().logsumexp(-1).exp()
