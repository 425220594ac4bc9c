"""The tokenizer: load one, or train a byte-level BPE; a hash that says which one made a token file."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harmonic_gpt.errors import InputError, is_out_of_memory, reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerBase":
    """A fast tokenizer from a folder or the Hub. Raises InputError if there is none, or none with an end-of-text
    token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # the hub client and the parsers raise many kinds
        if is_out_of_memory(error):
            raise
        expected = "a folder with tokenizer.json, or a hub name"
        raise InputError(f"no tokenizer at {str(name)!r} ({expected}): {reason_of(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{name}: expected a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{name}: the tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """Byte-level BPE as GPT-2's (same splitting rule, no unknown token), with <|endoftext|> as its last id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([END_OF_TEXT])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def ordinary_encoder(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """The backend tokenizer, set so that a literal <|endoftext|> inside a document stays ordinary text."""
    return ordinary_backend(tokenizer.backend_tokenizer.to_str())


def ordinary_backend(text: str) -> "Tokenizer":
    """`ordinary_encoder` of what the tokenizers library wrote (tokenizer.json)."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of the (token, id) pairs: equal hashes mean that ids mean the same."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
