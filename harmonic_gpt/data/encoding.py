"""Documents to ids: tiktoken where it gives the tokenizer's own ids, else the tokenizers library."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from harmonic_gpt.data.tokenizer import ordinary_backend

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[list[str]], np.ndarray]
# By split: (ids, documents, bytes of text)
Encoded = dict[str, tuple[np.ndarray, int, int]]
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Many documents are one call to tiktoken, with these two between and inside them: ASCII's record and unit separators.
# Documents that hold one of them go one by one
SEPARATOR, CUT = "\x1e", "\x1f"
# A regular expression without lookahead runs about twice as fast in tiktoken. GPT-2's differs from this one in the last
# blank of a run before a word: it belongs to the word. So a CUT goes before that blank, and its id is taken out again
WORDS_AFTER_CUTS = GPT2_WORDS.replace(r"|\s+(?!\S)", "")
BLANK = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space, which is \s there
BEFORE_LAST_BLANK = re.compile(f"[{BLANK}](?=[{BLANK}][^{BLANK}{SEPARATOR}])")
CUT_ID = 2**32 - 1


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is built from, in any process: `backend` is the tokenizers library's JSON, `ranks` are tiktoken's
    ids of byte strings, None where tiktoken cannot give the tokenizer's ids."""

    backend: str
    end_of_text: int
    ranks: dict[bytes, int] | None

    @property
    def library(self) -> str:
        return "tokenizers" if self.ranks is None else "tiktoken"


def encoder_spec(tokenizer: "PreTrainedTokenizerBase") -> EncoderSpec:
    backend = tokenizer.backend_tokenizer.to_str()
    return EncoderSpec(backend, tokenizer.eos_token_id, _tiktoken_ranks(backend))


def document_encoder(spec: EncoderSpec) -> Encode:
    """encode(texts) gives the ids of all texts, each followed by end-of-text: (tokens,) unsigned integers.

    A special token inside a text is ordinary text. May be called from several threads: most of the work is done outside
    of Python's lock.
    """

    @cache  # tiktoken hardly ever needs it
    def backend() -> "Tokenizer":
        return ordinary_backend(spec.backend)

    def by_tokenizers(texts: list[str]) -> np.ndarray:
        encodings = backend().encode_batch_fast(texts, add_special_tokens=False)
        return np.concatenate([np.array([*encoding.ids, spec.end_of_text], np.uint32) for encoding in encodings])

    if spec.ranks is None:
        return by_tokenizers
    fast = _encoding(spec.ranks, WORDS_AFTER_CUTS, {SEPARATOR: spec.end_of_text, CUT: CUT_ID})

    @cache
    def exact() -> "tiktoken.Encoding":
        return tiktoken_encoding(spec)

    def one_by_one(text: str) -> np.ndarray:
        try:
            return np.append(exact().encode_to_numpy(text, disallowed_special=()), np.uint32(spec.end_of_text))
        except ValueError:  # hundreds of thousands of blanks overflow the stack of tiktoken's regular expressions
            return by_tokenizers([text])

    def by_tiktoken(texts: list[str]) -> np.ndarray:
        # One call for many documents: ids come back as an array, not as a Python list for each document
        if not any(SEPARATOR in text or CUT in text for text in texts):
            with suppress(ValueError):
                joined = BEFORE_LAST_BLANK.sub(lambda blank: blank[0] + CUT, SEPARATOR.join([*texts, ""]))
                ids = fast.encode_to_numpy(joined, allowed_special={SEPARATOR, CUT})
                return ids[ids != CUT_ID]
        return np.concatenate([one_by_one(text) for text in texts])

    return by_tiktoken


def batch_encoder(spec: EncoderSpec, dtype: np.dtype) -> Callable[[dict[str, list[str]]], Encoded]:
    """The documents of a batch, by split, to the ids that are written."""
    encode = document_encoder(spec)

    def encode_batch(batch: dict[str, list[str]]) -> Encoded:
        encoded = {}
        for split, texts in batch.items():
            ids = encode(texts).astype(dtype) if texts else np.empty(0, dtype)
            encoded[split] = ids, len(texts), sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return encoded

    return encode_batch


def tiktoken_encoding(spec: EncoderSpec) -> "tiktoken.Encoding":
    """The tokenizer as tiktoken's own users have it, with GPT-2's regular expression. `spec` has ranks."""
    from tiktoken_ext.openai_public import r50k_pat_str

    assert spec.ranks is not None
    return _encoding(spec.ranks, r50k_pat_str, {})


def _encoding(ranks: dict[bytes, int], words: str, special: dict[str, int]) -> "tiktoken.Encoding":
    import tiktoken

    return tiktoken.Encoding("of this tokenizer", pat_str=words, mergeable_ranks=ranks, special_tokens=special)


def _tiktoken_ranks(backend: str) -> dict[bytes, int] | None:
    """tiktoken's ids of byte strings. None: it is no byte-level BPE like GPT-2's, or tiktoken is not installed.

    tiktoken knows no list of merges: it joins the pair whose result has the lowest id. That is the same where the
    merges come in the order of their results' ids, as in what training a BPE writes, and in what is converted from
    tiktoken.
    """
    if find_spec("tiktoken") is None:
        return None
    spec = json.loads(backend)
    model = spec["model"]
    extras = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    plain = model["type"] == "BPE" and spec["normalizer"] is None and not any(model.get(key) for key in extras)
    only_special = all(token["special"] for token in spec["added_tokens"])
    if not (plain and only_special and _splits_as_gpt2(spec["pre_tokenizer"])):
        return None
    special = {token["content"] for token in spec["added_tokens"]}
    vocabulary = {token: rank for token, rank in model["vocab"].items() if token not in special}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    letters = byte_letters()
    ids = [vocabulary.get(token, -1) for token in [*letters, *(left + right for left, right in merges)]]
    bytes_first = [*sorted(ids[:256]), *ids[256:]]
    if bytes_first != sorted(ids) or set(ids) != set(vocabulary.values()):
        return None
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    return {bytes(byte_of[letter] for letter in token): rank for token, rank in vocabulary.items()}


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


def byte_letters() -> list[str]:
    """The letter that a byte-level BPE writes for each byte: printable Latin-1 for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
