"""Names of tokens on the page."""

from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.explorer.vocabulary import PARTS_OF_SPEECH, describe_tokens, token_texts


def test_tokens_as_text(token_folder):
    tokenizer = load_tokenizer(token_folder / "tokenizer")
    texts = token_texts(tokenizer, 302)
    assert texts[-2:] == ["#300", "#301"]
    assert len(set(texts)) == 302
    assert " cat" in texts
    for word, expected in (("é", ["\\xc3", "\\xa9"]), ("a", ["a"]), ("\n", ["\n"])):
        assert [texts[i] for i in tokenizer.encode(word)] == expected


def test_words_and_pairs(token_folder):
    tokenizer = load_tokenizer(token_folder / "tokenizer")
    pets = {"pets": [("cat", "dog"), ("cat", "unheard")], "none": [("zzz", "yyy")]}
    held = describe_tokens(tokenizer, 300, None, pets)
    cat, dog = (held["tokens"].index(f" {word}") for word in ("cat", "dog"))
    assert held["tasks"] == {"pets": {"pairs": [[cat, dog]], "used": 1, "of": 2}}
    assert PARTS_OF_SPEECH[held["parts"][held["tokens"].index(" river")]] in ("noun", "unknown")
    assert describe_tokens(None, 3, None, pets)["tokens"] == ["#0", "#1", "#2"]
