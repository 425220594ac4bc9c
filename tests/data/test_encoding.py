"""Ids: those of tiktoken's encode_ordinary, and those of the tokenizer itself."""

import json
from itertools import chain

import pytest
import tiktoken
from transformers import AutoTokenizer

from harmonic_gpt.data.encoding import SEPARATOR, document_encoder, tiktoken_encoding
from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.tokenizer import ordinary_encoder, train_tokenizer
from tests.conftest import SHARED

GPT2 = SHARED / "data/gpt2-tokenizer"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason="shared/data/gpt2-tokenizer is not here")
ODD = [
    "a <|endoftext|> b",
    "<|endoftext|>",
    f"before {SEPARATOR} behind",
    SEPARATOR,
    "",
    " ",
    "\n",
    "  \n\n\t x  ",
    "trailing   ",
    "   leading",
    "it's we'LL I'm 'tis they've'd",
    "naïve café Ωmega 漢字かな 한국어 हिन्दी العربية",
    "😀 \U0001f469\u200d\U0001f467 \U0001f3f4\u200d\u2620\ufe0f",  # emoji joined by zero-width joiners
    "a\u0301 \u200b\ufeff\xa0\u2028\u3000\x85 x",  # combining mark, and blanks of every kind
    "\x00\x01\x7f",
    "\ufffd\U0010ffff",
    "1234567890 ½ ² Ⅻ ٣",
    "x" * 5000,
    " " * 5000 + "x",
    "=" * 3000,
    "\r\n\r\n \r\n",
    "\n" * 3000,
    "ab" * 3000,
    "Ａ" * 999,
]


def byte_ranks(folder):
    """tiktoken's ranks out of the tokenizer's vocabulary, by transformers' own table of bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items() if token != "<|endoftext|>"}


@needs_gpt2
def test_gpt2s_ids_are_tiktokens_encode_ordinary_and_50256():
    from tiktoken_ext.openai_public import r50k_pat_str

    reference = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=byte_ranks(GPT2), special_tokens={"<|endoftext|>": 50256}
    )
    tokenizer = AutoTokenizer.from_pretrained(GPT2)
    encode, library = document_encoder(tokenizer)
    assert library == "tiktoken"
    texts = [*ODD, *list(documents("pydocs"))[::12]]
    expected = [[*reference.encode_ordinary(text), 50256] for text in texts]
    assert [encode([text]).tolist() for text in texts] == expected
    assert encode(texts).tolist() == list(chain(*expected))
    # The way of nearly all documents: one call for all of them
    plain = [i for i, text in enumerate(texts) if SEPARATOR not in text]
    assert encode([texts[i] for i in plain]).tolist() == list(chain(*(expected[i] for i in plain)))
    backend = ordinary_encoder(tokenizer)
    assert [backend.encode(text, add_special_tokens=False).ids for text in texts] == [ids[:-1] for ids in expected]


@needs_gpt2
def test_every_character_splits_alike_in_both_libraries():
    """Their tables of letters, digits and blanks may come from different versions of Unicode."""
    tokenizer = AutoTokenizer.from_pretrained(GPT2)
    encode, _ = document_encoder(tokenizer)
    characters = [chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{c}b {c}{c} 1{c}2\n" for c in characters[i : i + 500]) for i in range(0, len(characters), 500)]
    expected = ordinary_encoder(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, expected, strict=True):
        assert encode([text]).tolist() == [*encoding.ids, 50256]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(list(documents("pydocs"))[::12], 800)


def test_a_trained_bpe_gives_its_own_ids(trained):
    encode, library = document_encoder(trained)
    assert library == "tiktoken"
    texts = [*ODD, *list(documents("pydocs"))[1::12]]
    backend = ordinary_encoder(trained)
    expected = [
        i for text in texts for i in [*backend.encode(text, add_special_tokens=False).ids, trained.eos_token_id]
    ]
    assert encode(texts).tolist() == expected
    assert trained.eos_token_id not in encode(["a <|endoftext|> b"])[:-1]
    assert trained.decode(encode(["a <|endoftext|> b"])[:-1]) == "a <|endoftext|> b"
    assert trained.eos_token_id == len(trained) - 1


def test_a_very_long_run_of_blanks(trained):
    """It overflows the stack of tiktoken's regular expressions."""
    text = " " * 1_000_000 + "x"
    with pytest.raises(ValueError, match="stack"):
        tiktoken_encoding(trained).encode_to_numpy(text, disallowed_special=())
    expected = [*ordinary_encoder(trained).encode(text).ids, trained.eos_token_id]
    encode, _ = document_encoder(trained)
    assert encode(["a", text, "b"]).tolist() == [*encode(["a"]), *expected, *encode(["b"])]


def _swap_merges(spec):
    merges = spec["model"]["merges"]
    merges[3], merges[200] = merges[200], merges[3]


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(normalizer={"type": "NFC"}),
        lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True),
        lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}),
        lambda spec: spec["pre_tokenizer"].update(use_regex=False),
        lambda spec: spec["added_tokens"][0].update(special=False),
        lambda spec: spec["model"]["merges"].pop(),
        _swap_merges,
    ],
)
def test_other_tokenizers_stay_with_their_own_library(trained, change):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    spec = json.loads(trained.backend_tokenizer.to_str())
    change(spec)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="<|endoftext|>")
    encode, library = document_encoder(other)
    assert library == "tokenizers"
    expected = [ordinary_encoder(other).encode(text, add_special_tokens=False).ids for text in ("some text", "more")]
    assert encode(["some text", "more"]).tolist() == [
        *expected[0],
        other.eos_token_id,
        *expected[1],
        other.eos_token_id,
    ]
