"""The texts that both models read: passages of the validation split on which they differ most, and the user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harmonic_gpt.data.tokenizer import ordinary_encoder
from harmonic_gpt.data.tokens import Tokens
from harmonic_gpt.errors import InputError, reason_of

CANDIDATES = 2  # passages that are scored for each one that is shown


@dataclass(frozen=True)
class Passage:
    ids: np.ndarray  # (T,) int64, T >= 2
    source: str
    note: str = ""  # what was left out of it


def candidates(stream: Tokens, count: int, length: int) -> list[Passage]:
    """At most CANDIDATES * `count` passages, evenly spaced over a split and without overlap."""
    fitting = len(stream) // length
    chosen = sorted({int(k) for k in np.linspace(0, fitting - 1, min(CANDIDATES * count, fitting))}) if fitting else []
    return [
        Passage(stream.read(k * length, length), f"validation tokens {k * length:,} to {(k + 1) * length - 1:,}")
        for k in chosen
    ]


def by_difference(
    passages: list[Passage], models: list[PreTrainedModel], count: int, advance: Callable[[int], object]
) -> list[Passage]:
    """The `count` passages with the largest mean absolute difference of the two models' surprise, the largest first."""
    gaps = []
    for passage in passages:
        surprises = []
        for model in models:
            surprises.append(nats(model, passage.ids))
            advance(len(passage.ids))
        gaps.append(float(np.abs(surprises[0] - surprises[1]).mean()))
    return [passages[i] for i in sorted(range(len(passages)), key=lambda i: -gaps[i])[:count]]


@torch.no_grad()
def nats(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """(T - 1,) float32: surprise of each token but the first of a text of T tokens."""
    tokens = torch.from_numpy(ids).to(model.device)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").cpu().numpy()


def read_files(paths: list[str], tokenizer: PreTrainedTokenizerBase, context: int) -> list[Passage]:
    """A passage of each text file. Raises InputError for one that cannot be read or has fewer than two tokens."""
    passages = []
    for path in paths:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise InputError(f"--text {path}: expected a text file in UTF-8: {reason_of(error)}") from error
        passages.append(encode(text, tokenizer, context, Path(path).name))
    return passages


def encode(text: str, tokenizer: PreTrainedTokenizerBase, context: int, source: str) -> Passage:
    """A text as tokens, cut to the context; the note says so. Raises InputError for fewer than two tokens."""
    ids = np.array(ordinary_encoder(tokenizer).encode(text, add_special_tokens=False).ids, np.int64)
    if len(ids) < 2:
        raise InputError(f"{source}: expected a text of at least 2 tokens, got {len(ids)}")
    note = (
        f"{len(ids):,} tokens; only the first {context:,}, the models' context, are shown" if len(ids) > context else ""
    )
    return Passage(ids[:context], source, note)
