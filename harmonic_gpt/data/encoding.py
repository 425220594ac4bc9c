"""Documents to ids: tiktoken where it gives the tokenizer's own ids, else the tokenizers library."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from harmonic_gpt.data.tokenizer import ordinary_encoder

if TYPE_CHECKING:
    import tiktoken
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str]], np.ndarray]
# Stands between the documents of one call to tiktoken. What it looks like does not matter: documents that contain it go one by one
SEPARATOR = "<|harmonic_gpt end of document|>"


def document_encoder(tokenizer: "PreTrainedTokenizerBase") -> tuple[Encode, str]:
    """(encode, name of the library): encode(texts) gives the ids of each text as ordinary text, each followed by end-of-text.

    encode returns (tokens,) unsigned integers and may be called from several threads: the work is done outside of Python's lock.
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
            return np.array([*encoding.encode_ordinary(text), end_of_text], np.uint32)
        except ValueError:  # a run of some hundred thousand blanks overflows the stack of tiktoken's regular expressions
            return by_tokenizers([text])

    def by_tiktoken(texts: list[str]) -> np.ndarray:
        # One call for many documents: ids come back as an array, not as a Python list for each document
        if not any(SEPARATOR in text for text in texts):
            try:
                return encoding.encode_to_numpy(SEPARATOR.join([*texts, ""]), allowed_special={SEPARATOR})
            except ValueError:
                pass
        return np.concatenate([one_by_one(text) for text in texts])

    return by_tiktoken, "tiktoken"


def tiktoken_encoding(tokenizer: "PreTrainedTokenizerBase") -> "tiktoken.Encoding | None":
    """The tokenizer as a tiktoken encoding, or None if it is not a byte-level BPE as GPT-2's, or tiktoken is not installed.

    tiktoken knows no list of merges: it joins the pair whose result has the lowest id. That is the same where the merges make their
    results in the order of their ids, as training a BPE does.
    """
    try:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str
    except ImportError:
        return None
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model, splitter = spec["model"], spec["pre_tokenizer"] or {}
    plain = model["type"] == "BPE" and not any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    )
    same_split = splitter.get("type") == "ByteLevel" and not splitter["add_prefix_space"] and splitter.get("use_regex", True)
    if not (plain and same_split and spec["normalizer"] is None and all(token["special"] for token in spec["added_tokens"])):
        return None
    vocabulary = dict(model["vocab"])
    for token in spec["added_tokens"]:
        vocabulary.pop(token["content"], None)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    results = [vocabulary.get(left + right) for left, right in merges]
    letters = _byte_letters()
    byte_ids = [vocabulary.get(letter) for letter in letters]
    if None in byte_ids or None in results or results != sorted(set(results)) or len(vocabulary) != 256 + len(results):
        return None
    if results and max(byte_ids) > results[0]:
        return None
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    ranks = {bytes(byte_of[letter] for letter in token): rank for token, rank in vocabulary.items()}
    return tiktoken.Encoding(
        "of this tokenizer", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={SEPARATOR: tokenizer.eos_token_id}
    )


def _byte_letters() -> list[str]:
    """The letter that a byte-level BPE writes for each byte: printable Latin-1 stands for itself, the rest follows from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
