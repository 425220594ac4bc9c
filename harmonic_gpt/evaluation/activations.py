"""Hidden states of any causal language model of transformers."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, ...]:
    """L + 1 tensors (B, T, D): the embeddings, then the output of each block; transformers puts the last one through the final norm."""
    return model.base_model(input_ids=ids.to(model.device), output_hidden_states=True, use_cache=False).hidden_states


def head_input(model: PreTrainedModel, last: Tensor) -> Tensor:
    """What the head compares with its rows: the last hidden states, times our head's constant."""
    return last * getattr(model.get_output_embeddings(), "hidden_scale", 1.0)


def text_states(model: PreTrainedModel, ids: np.ndarray, block: int, batch: int = 8) -> tuple[list[Tensor], Tensor]:
    """Hidden states of every layer, (N, D) float32 each, and the next tokens (N,), of a line of tokens cut into blocks."""
    blocks = (len(ids) - 1) // block
    stream = torch.from_numpy(ids[: blocks * block + 1].astype(np.int64))
    inputs, labels = stream[:-1].view(blocks, block), stream[1:]
    parts = [[h.flatten(0, 1).float().cpu() for h in hidden_states(model, rows)] for rows in inputs.split(batch)]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)], labels


def word_states(model: PreTrainedModel, ids: np.ndarray, start: int | None, batch: int = 512) -> list[Tensor]:
    """Hidden states of single tokens (N,), each alone after the token `start`: (N, D) a layer."""
    tokens = torch.from_numpy(ids.astype(np.int64))[:, None]
    if start is not None:
        tokens = torch.cat([torch.full_like(tokens, start), tokens], 1)
    parts = [[h[:, -1].float().cpu() for h in hidden_states(model, rows)] for rows in tokens.split(batch)]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]
