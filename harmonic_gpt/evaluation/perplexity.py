"""Perplexity: a sum of nats over a sum of tokens. Per token it depends on the tokenizer; bits per byte do not."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harmonic_gpt.errors import InputError, option
from harmonic_gpt.likelihood import block_nats
from harmonic_gpt.progress import show_progress


@dataclass
class Perplexity:
    """`tokens` targets cost `nats` in all; `text_bytes` is the length of their text in UTF-8, 0 if it is not known."""

    nats: float
    tokens: int
    text_bytes: int
    window: int
    stride: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats_per_token, 700.0))  # e^700 is near the largest float

    @property
    def bits_per_byte(self) -> float | None:
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def to_dict(self) -> dict:
        keys = ("nats_per_token", "perplexity", "bits_per_byte", "tokens", "text_bytes", "window", "stride")
        return {key: getattr(self, key) for key in keys}


def perplexity(
    model: PreTrainedModel,
    ids: np.ndarray,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> Perplexity:
    """Perplexity of a line of tokens with overlapping windows: every token but the first is a target exactly once.

    Args:
        ids: (N,) token ids, N >= 2.
        tokenizer: decodes the targets to count their bytes (end-of-text tokens count none); None: no bits per byte.
        window: tokens of context at most, default the model's.
        stride: targets of a window, default window / 2: each has at least window - stride tokens of context, where
            there are any.
    Raises InputError for too few tokens, ids beyond the vocabulary, or a stride beyond the window.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    window = window or limit or 1024
    stride = stride or max(1, window // 2)
    if limit is not None and window > limit:
        raise InputError(f"{option('window')} {window}: longer than the model's {limit} positions")
    if not 1 <= stride <= window:
        raise InputError(f"{option('stride')}: expected 1 to the window of {window}, got {stride}")
    if len(ids) < 2:
        raise InputError(f"perplexity needs at least 2 tokens, got {len(ids)}")
    if ids.max() >= model.config.vocab_size:
        raise InputError(
            f"token id {ids.max()} is beyond the model's vocabulary of {model.config.vocab_size}: another tokenizer?"
        )

    stream = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    # Targets are stream[1:]. The first window scores all of its targets, each further one its last `stride`.
    ends = [*list(range(min(window, len(ids) - 1), len(ids) - 1, stride)), len(ids) - 1]
    nats, done = 0.0, 0
    full = list(ends[1:-1])  # equal shape and equal count of new targets: can be batched
    bar = show_progress(desc="perplexity", total=len(ids) - 1, unit=" tokens")

    def score(batch_ends: list[int], new: int) -> None:
        nonlocal nats, done
        length = min(window, batch_ends[0])
        rows = torch.stack([stream[end - length : end + 1] for end in batch_ends])  # (B, length + 1)
        nats += block_nats(model, rows, ignore_leading=length - new).item()
        done += new * len(batch_ends)
        bar.update(new * len(batch_ends))

    score(ends[:1], ends[0])
    for i in range(0, len(full), batch_size):
        score(full[i : i + batch_size], stride)
    if len(ends) > 1:
        score(ends[-1:], ends[-1] - ends[-2])
    bar.close()
    assert done == len(ids) - 1
    if not math.isfinite(nats):
        raise FloatingPointError(f"the model's loss on these tokens is {nats}")
    text_bytes = 0
    if tokenizer is not None:
        text_bytes = len(str(tokenizer.decode(ids[1:].tolist(), skip_special_tokens=True)).encode("utf-8"))
    return Perplexity(nats, done, text_bytes, window, stride)
