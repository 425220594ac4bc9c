"""Ids: those of tiktoken's encode_ordinary, and those of the tokenizer itself."""

import json
import random
from itertools import chain

import pytest
import tiktoken
from transformers import AutoTokenizer

from harmonic_gpt.data.encoding import CUT, SEPARATOR, document_encoder, encoder_spec, tiktoken_encoding
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
    f"a{CUT} {CUT}  b",
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


def tiktoken_encoder(tokenizer):
    spec = encoder_spec(tokenizer)
    assert spec.library == "tiktoken"
    return document_encoder(spec)


@needs_gpt2
def test_gpt2s_ids_are_tiktokens_encode_ordinary_and_50256():
    from tiktoken_ext.openai_public import r50k_pat_str

    reference = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=byte_ranks(GPT2), special_tokens={"<|endoftext|>": 50256}
    )
    tokenizer = AutoTokenizer.from_pretrained(GPT2)
    encode = tiktoken_encoder(tokenizer)
    texts = [*ODD, *list(documents("pydocs"))[::12]]
    expected = [[*reference.encode_ordinary(text), 50256] for text in texts]
    assert [encode([text]).tolist() for text in texts] == expected
    assert encode(texts).tolist() == list(chain(*expected))
    # The way of nearly all documents: one call for all of them
    plain = [i for i, text in enumerate(texts) if SEPARATOR not in text and CUT not in text]
    assert encode([texts[i] for i in plain]).tolist() == list(chain(*(expected[i] for i in plain)))
    backend = ordinary_encoder(tokenizer)
    assert [backend.encode(text, add_special_tokens=False).ids for text in texts] == [ids[:-1] for ids in expected]


@needs_gpt2
def test_every_character_splits_alike_in_both_libraries():
    """Their tables of letters, digits and blanks may come from different versions of Unicode."""
    tokenizer = AutoTokenizer.from_pretrained(GPT2)
    encode = tiktoken_encoder(tokenizer)
    characters = [chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{c}b {c}{c} 1{c}2\n" for c in characters[i : i + 500]) for i in range(0, len(characters), 500)]
    expected = ordinary_encoder(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, expected, strict=True):
        assert encode([text]).tolist() == [*encoding.ids, 50256]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(list(documents("pydocs"))[::12], 800)


def test_a_trained_bpe_gives_its_own_ids(trained):
    encode = tiktoken_encoder(trained)
    texts = [*ODD, *list(documents("pydocs"))[1::12]]
    backend = ordinary_encoder(trained)
    expected = [
        i for text in texts for i in [*backend.encode(text, add_special_tokens=False).ids, trained.eos_token_id]
    ]
    assert encode(texts).tolist() == expected
    assert trained.eos_token_id not in encode(["a <|endoftext|> b"])[:-1]
    assert trained.decode(encode(["a <|endoftext|> b"])[:-1]) == "a <|endoftext|> b"
    assert trained.eos_token_id == len(trained) - 1


def test_blanks_of_every_kind_and_length(trained):
    """Where a run of blanks ends before a word, a document or another blank decides its ids; all documents in one
    call."""
    rng = random.Random(0)
    alphabet = [*" \n\t\r\x0b\x0c\x85\xa0\u2003\u3000", *"\x1c\x1d\u200b\ufeff", "a", "é", "7", "'s", ".", "漢"]
    texts = ["".join(rng.choices(alphabet, [4] * 10 + [1] * 10, k=rng.randrange(30))) for _ in range(3000)]
    encodings = ordinary_encoder(trained).encode_batch_fast(texts, add_special_tokens=False)
    assert tiktoken_encoder(trained)(texts).tolist() == [
        i for encoding in encodings for i in [*encoding.ids, trained.eos_token_id]
    ]


@pytest.mark.parametrize("mark", ["", SEPARATOR])
def test_a_very_long_run_of_blanks(trained, mark):
    """It overflows the stack of the regular expression that a document with a SEPARATOR needs."""
    text = mark + " " * 1_000_000 + "x"
    with pytest.raises(ValueError, match="stack"):
        tiktoken_encoding(encoder_spec(trained)).encode_to_numpy(text, disallowed_special=())
    expected = [*ordinary_encoder(trained).encode(text).ids, trained.eos_token_id]
    encode = tiktoken_encoder(trained)
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
    spec = encoder_spec(other)
    assert spec.library == "tokenizers"
    encode = document_encoder(spec)
    expected = [ordinary_encoder(other).encode(text, add_special_tokens=False).ids for text in ("some text", "more")]
    assert encode(["some text", "more"]).tolist() == [
        *expected[0],
        other.eos_token_id,
        *expected[1],
        other.eos_token_id,
    ]
