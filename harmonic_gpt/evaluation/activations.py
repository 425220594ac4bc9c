"""The head and the hidden states of any causal language model of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harmonic_gpt.errors import InputError
from harmonic_gpt.model.heads import HeadSpec
from harmonic_gpt.progress import show_progress

# The last layer norm of the families that transformers knows; a hidden state of any layer goes through it before the
# head
FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm", "decoder.final_layer_norm", "model.norm")


def centers_of(model: PreTrainedModel) -> Tensor:
    """(V, D): the rows of the head, one a token; the harmonic head's class centers. Raises InputError if it has
    none."""
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output embedding: nothing to measure")
    return head.weight


def spec_of(model: PreTrainedModel) -> HeadSpec | None:
    """Which of our heads a model has; None: another library's, which takes dot products and a softmax."""
    return getattr(model.get_output_embeddings(), "spec", None)


def is_euclidean(model: PreTrainedModel) -> bool:
    """Whether the head compares by the distance between hidden states and centers, not by dot products, angles or
    another metric."""
    spec = spec_of(model)
    return spec is not None and spec.euclidean


def score_name(model: PreTrainedModel) -> str:
    """What the head compares states and centers by: "distance" (Euclidean), "dot product", "own distance" for a head
    with another metric, or "logit" for one that has neither."""
    spec, head = spec_of(model), getattr(model.get_output_embeddings(), "definition", None)
    if is_euclidean(model):
        return "distance"
    if spec is None or head is None or (head.form is not None and head.form.quantity == "dot" and not head.prepare):
        return "dot product"
    return "logit" if spec.exponent is None else "own distance"


def scores(model: PreTrainedModel, states: Tensor, ids: Tensor, logits: Tensor) -> Tensor:
    """(N, k): what the head compares by (see `score_name`), of each state's listed tokens.

    Exact differences, not ||x||^2 + ||w||^2 - 2 x.w, whose rounding shows in small distances.

    Args:
        states: (N, D), what the head compares with its rows. ids: (N, k). logits: (N, V).
    """
    name = score_name(model)
    if name == "logit":
        return logits.gather(1, ids)
    rows = centers_of(model)[ids]  # (N, k, D)
    if name == "distance":
        return (rows - states[:, None]).norm(dim=-1)
    if name == "dot product":
        return (rows * states[:, None]).sum(-1)
    head, spec = model.get_output_embeddings(), spec_of(model)
    assert head is not None
    assert spec is not None
    assert spec.exponent is not None
    z = head.definition.logit(states[:, None], rows, head.values())  # -n log of the distance
    return (-z / spec.exponent).exp()


def embedding_of(model: PreTrainedModel) -> Tensor:
    """(V, D): the rows of the input embedding, the very same tensor as the centers where the two are tied."""
    return model.get_input_embeddings().weight  # type: ignore[return-value]


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids: Tensor, **kwargs) -> tuple[Tensor, ...]:
    """L + 1 tensors (B, T, D): the embeddings, then the output of each block; transformers puts the last one through
    the final norm."""
    return model.base_model(
        input_ids=ids.to(model.device), output_hidden_states=True, use_cache=False, **kwargs
    ).hidden_states


def head_input(model: PreTrainedModel, last: Tensor) -> Tensor:
    """(..., D): what the head compares with its rows. The last hidden states (..., D), times our head's constant."""
    return last * getattr(model.get_output_embeddings(), "hidden_scale", 1.0)


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The layer norm in front of the head. Raises InputError if it has none of the known names."""
    for name in FINAL_NORMS:
        try:
            return model.base_model.get_submodule(name)
        except AttributeError:
            continue
    raise InputError(
        f"{type(model).__name__}: no final norm under a known name ({', '.join(FINAL_NORMS)}): inner layers cannot be "
        "compared with the head's rows"
    )


@contextmanager
def final_residual(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """A list that takes what enters the final norm, (N, D) on the CPU for each forward pass inside the context; empty
    for a model whose final norm is not known.

    transformers returns the last hidden state behind that norm.
    """
    taken: list[Tensor] = []
    try:
        norm = final_norm(model)
    except InputError:
        yield taken
        return
    hook = norm.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach().flatten(0, -2).cpu()))
    try:
        yield taken
    finally:
        hook.remove()


def text_states(model: PreTrainedModel, ids: np.ndarray, block: int, batch: int = 8) -> tuple[list[Tensor], Tensor]:
    """Hidden states of every layer, (N, D) float32 each, and the next tokens (N,), of a line of tokens cut into
    blocks."""
    blocks = (len(ids) - 1) // block
    stream = torch.from_numpy(ids[: blocks * block + 1].astype(np.int64))
    inputs, labels = stream[:-1].view(blocks, block), stream[1:]
    layers: list[Tensor] = []  # filled in place: a list of parts would need the memory twice
    with show_progress(desc="hidden states", total=len(labels), unit=" tokens") as bar:
        for start in range(0, blocks, batch):
            states = hidden_states(model, inputs[start : start + batch])
            layers = layers or [torch.empty(len(labels), h.shape[-1]) for h in states]
            for layer, h in zip(layers, states, strict=True):
                layer[start * block : start * block + h[..., 0].numel()] = h.flatten(0, 1)
            bar.update(states[0][..., 0].numel())
    return layers, labels


def mean_states(model: PreTrainedModel, examples: list[list[int]], start: int | None, batch: int = 64) -> list[Tensor]:
    """Hidden states of short token sequences, averaged over their tokens: (N, D) float32 a layer. Cut at the model's
    positions.

    Args:
        start: token before each sequence, not part of the mean (the first position of a GPT-2 is unlike all others);
            None: none.
    """
    lead = [] if start is None else [start]
    limit = getattr(model.config, "max_position_embeddings", None)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))  # little padding
    layers: list[Tensor] = []
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        rows = [(lead + list(examples[i]))[:limit] for i in chosen]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for k, row in enumerate(rows):  # padding on the right: no token before it sees it
            ids[k, : len(row)], mask[k, : len(row)] = torch.tensor(row), 1
        states = hidden_states(model, ids, attention_mask=mask.to(model.device))
        layers = layers or [torch.empty(len(examples), h.shape[-1]) for h in states]
        mask[:, : len(lead)] = 0
        share = (mask / mask.sum(1, keepdim=True)).to(model.device)
        for layer, h in zip(layers, states, strict=True):
            layer[chosen] = torch.einsum("btd,bt->bd", h.float(), share).cpu()
    return layers
