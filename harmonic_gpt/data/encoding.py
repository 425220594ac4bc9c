"""Documents to ids: tiktoken where it gives the tokenizer's own ids, else the tokenizers library."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from harmonic_gpt.data.tokenizer import ordinary_encoder

if TYPE_CHECKING:
    import tiktoken
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str]], np.ndarray]
# Stands between the documents of one call to tiktoken. Its form does not matter: documents that hold it go one by one
SEPARATOR = "<|harmonic_gpt end of document|>"
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def document_encoder(tokenizer: "PreTrainedTokenizerBase") -> tuple[Encode, str]:
    """(encode, name of the library): encode(texts) gives the ids of all texts, each followed by end-of-text.

    A special token inside a text is ordinary text. encode returns (tokens,) unsigned integers and may be called from
    several threads: the work is done outside of Python's lock.
    """
    reference = ordinary_encoder(tokenizer)
    end_of_text = tokenizer.eos_token_id

    def by_tokenizers(texts: list[str]) -> np.ndarray:
        encodings = reference.encode_batch_fast(texts, add_special_tokens=False)
        return np.concatenate([np.array([*encoding.ids, end_of_text], np.uint32) for encoding in encodings])

    encoding = tiktoken_encoding(tokenizer)
    if encoding is None:
        return by_tokenizers, "tokenizers"

    def one_by_one(text: str) -> np.ndarray:
        try:
            return np.append(encoding.encode_to_numpy(text, disallowed_special=()), np.uint32(end_of_text))
        except ValueError:  # hundreds of thousands of blanks overflow the stack of tiktoken's regular expressions
            return by_tokenizers([text])

    def by_tiktoken(texts: list[str]) -> np.ndarray:
        # One call for many documents: ids come back as an array, not as a Python list for each document
        if not any(SEPARATOR in text for text in texts):
            with suppress(ValueError):
                return encoding.encode_to_numpy(SEPARATOR.join([*texts, ""]), allowed_special={SEPARATOR})
        return np.concatenate([one_by_one(text) for text in texts])

    return by_tiktoken, "tiktoken"


def tiktoken_encoding(tokenizer: "PreTrainedTokenizerBase") -> "tiktoken.Encoding | None":
    """The tokenizer as a tiktoken encoding. None: it is no byte-level BPE like GPT-2's, or tiktoken is not installed.

    tiktoken knows no list of merges: it joins the pair whose result has the lowest id. That is the same where the
    merges come in the order of their results' ids, as in what training a BPE writes, and in what is converted from
    tiktoken.
    """
    try:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str
    except ImportError:
        return None
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    extras = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    plain = model["type"] == "BPE" and spec["normalizer"] is None and not any(model.get(key) for key in extras)
    only_special = all(token["special"] for token in spec["added_tokens"])
    if not (plain and only_special and _splits_as_gpt2(spec["pre_tokenizer"])):
        return None
    special = {token["content"] for token in spec["added_tokens"]}
    vocabulary = {token: rank for token, rank in model["vocab"].items() if token not in special}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    letters = _byte_letters()
    ids = [vocabulary.get(token, -1) for token in [*letters, *(left + right for left, right in merges)]]
    bytes_first = [*sorted(ids[:256]), *ids[256:]]
    if bytes_first != sorted(ids) or set(ids) != set(vocabulary.values()):
        return None
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    ranks = {bytes(byte_of[letter] for letter in token): rank for token, rank in vocabulary.items()}
    specials = {SEPARATOR: tokenizer.eos_token_id}
    return tiktoken.Encoding("of this tokenizer", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=specials)


def _splits_as_gpt2(splitter: dict | None) -> bool:
    """Whether text is cut into words by GPT-2's rule: built into ByteLevel, or written out before it."""
    steps = (splitter or {}).get("pretokenizers", [splitter or {}])
    *before, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last.get("use_regex", True):
        return not before
    written_out = {"type": "Split", "pattern": {"Regex": GPT2_WORDS}, "behavior": "Isolated", "invert": False}
    return before == [written_out]


def _byte_letters() -> list[str]:
    """The letter that a byte-level BPE writes for each byte: printable Latin-1 for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
