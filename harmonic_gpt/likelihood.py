"""Nats of tokens: what training, evaluation and reports all count."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM

IGNORED = -100  # a target that costs nothing, as torch and transformers mark it
COUNTED_TOKENS = 20_000_000  # of a corpus: token frequencies settle long before


def inputs_and_targets(ids: Tensor, rows: int = 0) -> tuple[Tensor, Tensor]:
    """What a causal model reads and what it is to predict, (B, T) each, of a batch ids (B, T + 1).

    With rows > B, rows of ignored targets (IGNORED) come after the batch's own, so that a compiled model sees one shape
    whatever the last batch holds.
    """
    missing = (0, 0, 0, max(0, rows - len(ids)))
    return F.pad(ids[:, :-1], missing), F.pad(ids[:, 1:], missing, value=IGNORED)


@torch.no_grad()
def block_nats(model: PreTrainedModel, ids: Tensor, ignore_leading: int = 0, rows: int = 0) -> Tensor:
    """Nats that a causal model needs for ids[:, 1:] given what precedes each; scalar sum in float32 (float64 of a
    float64 model).

    Args:
        ids: (B, T + 1) int32 or int64.
        ignore_leading: this many first targets of every row are context only.
        rows: of the batch that the model sees, see `inputs_and_targets`.
    """
    inputs, targets = inputs_and_targets(ids, rows)
    if ignore_leading:
        targets = targets.clone()
        targets[:, :ignore_leading] = IGNORED
    if isinstance(model, HarmonicGPT2ForCausalLM):  # its loss never builds the (B T, V) logits
        return model(
            input_ids=inputs, shift_labels=targets, num_items_in_batch=1, skip_logits=True, use_cache=False
        ).loss
    logits = model(input_ids=inputs, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED, reduction="sum")


def token_counts(folder: TokenFolder) -> np.ndarray:
    """(V,) int64: how often each token occurs among 20 M training tokens, shared out over the sources."""
    tokens = folder.leading("train", COUNTED_TOKENS)
    return np.bincount(tokens.read(0, len(tokens)), minlength=tokens.vocab_size)


def unigram_nats(folder: TokenFolder, limit: int) -> float:
    """Nats a token of predicting `limit` validation tokens from training frequencies alone (add-one smoothed).

    What a model must beat to have learned more than which tokens are common.
    """
    counts, validation = token_counts(folder) + 1, folder.leading("val", limit)
    log_p = np.log(counts / counts.sum())
    return float(-log_p[validation.read(0, len(validation))].mean())
