"""What is known of each token: its text, how often the training text has it, its part of speech, its word pairs."""

import json

import numpy as np
from transformers import PreTrainedTokenizerBase

from harmonic_gpt.data.encoding import byte_letters
from harmonic_gpt.evaluation.tasks.probe_tasks import WORDS
from harmonic_gpt.evaluation.tasks.word_pairs import Pairs, single_token_id, token_pairs

PARTS_OF_SPEECH = ("unknown", "noun", "verb", "adjective", "adverb")
BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


def describe_tokens(
    tokenizer: PreTrainedTokenizerBase | None, size: int, counts: np.ndarray | None, tasks: dict[str, Pairs]
) -> dict:
    """{"tokens": V texts, "counts": (V,) or None, "parts": (V,) index into "part_names" or None, "tasks": {name:
    {"pairs": [[id, id]], "used", "of"}}}.

    Args:
        tokenizer: None: tokens are called by their numbers, and nothing is known of words.
        size: V, rows of the head; there may be more than the tokenizer has tokens.
        counts: of each token in the training text.
    """
    held = None if counts is None else np.pad(counts, (0, max(0, size - len(counts))))[:size].astype(np.uint32)
    if tokenizer is None:
        return {"tokens": [f"#{i}" for i in range(size)], "counts": held, "parts": None, "part_names": [], "tasks": {}}
    parts = np.zeros(size, np.uint8)
    for name, words in json.loads(WORDS.read_text(encoding="utf-8")).items():
        for word in words.split():
            token = single_token_id(tokenizer, word)
            if token is not None and token < size:
                parts[token] = PARTS_OF_SPEECH.index(name)
    pairs = {name: token_pairs(words, tokenizer, "strict") for name, words in tasks.items()}
    listed = {
        name: {"pairs": found.ids.tolist(), "used": len(found.ids), "of": len(tasks[name])}
        for name, found in pairs.items()
        if len(found.ids)
    }
    return {
        "tokens": token_texts(tokenizer, size),
        "counts": held,
        "parts": parts,
        "part_names": list(PARTS_OF_SPEECH),
        "tasks": listed,
    }


def token_texts(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """The text of each token. Bytes that are a part of a character stand as in a Python literal, \\xe2."""
    known = min(size, len(tokenizer))
    texts = [str(tokenizer.decode([i])) for i in range(known)]
    names = tokenizer.convert_ids_to_tokens(list(range(known)))
    shown = [_bytes_of(str(name)) if "�" in text or not text else text for text, name in zip(texts, names, strict=True)]
    return shown + [f"#{i}" for i in range(known, size)]


def _bytes_of(name: str) -> str:
    """The bytes that a byte-level token's name stands for, as text as far as they are any; other names as they are."""
    try:
        return bytes(BYTES[letter] for letter in name).decode("utf-8", errors="backslashreplace")
    except KeyError:
        return name
