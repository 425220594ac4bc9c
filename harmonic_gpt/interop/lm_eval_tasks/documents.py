"""Documents of the harness's tasks in this folder. lm-evaluation-harness loads this file by its path; `**_` takes its
model arguments."""

import random
from pathlib import Path

from datasets import Dataset

from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks

CHOICES = 4


def validation_text(pretrained: str, data: str | None = None, text_column: str = "text", **_) -> dict[str, Dataset]:
    """One document: all texts with an end-of-text token after each, as in a token folder, so that windows reach across
    documents.

    Args:
        pretrained: the model, for its tokenizer.
        data: token folder (its validation split, decoded), or a file of text.
    """
    if data is None:
        raise InputError(
            'validation_text needs its text: --metadata \'{"data": "FOLDER_OR_FILE"}\', or `eval.py lm-eval --data`'
        )
    tokenizer = load_tokenizer(pretrained)
    if Path(data).expanduser().is_dir():
        folder = open_token_folder(data, len(tokenizer))
        folder.check_tokenizer(tokenizer)
        stream = folder.tokens("val")
        text = tokenizer.decode(stream.read(0, len(stream)).tolist())
    else:
        text = "".join(document + tokenizer.eos_token for document in documents(data, text_column))
    return {"test": Dataset.from_list([{"text": text, "end_of_text": tokenizer.eos_token}])}


def process_text(doc: dict, results: list[float]) -> dict[str, tuple[float, int]]:
    """(log likelihood, words or bytes); the end-of-text tokens between documents cost likelihood and count as no
    text."""
    texts = doc["text"].split(doc["end_of_text"])
    n_words = sum(len(text.split()) for text in texts)
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    (log_likelihood,) = results
    return {
        "word_perplexity": (log_likelihood, n_words),
        "byte_perplexity": (log_likelihood, n_bytes),
        "bits_per_byte": (log_likelihood, n_bytes),
    }


def relation(relation: str, **_) -> dict[str, Dataset]:
    """Questions of one relation: the right word among three others of the same relation, drawn once and for all."""
    pairs = load_tasks()[relation]
    words = sorted({output for _, output in pairs})
    rows = []
    for i, (word, output) in enumerate(pairs):
        rng = random.Random(f"{relation}/{i}")
        right = {o for w, o in pairs if w == word}  # another right answer is no distractor
        choices = [output, *rng.sample([other for other in words if other not in right], CHOICES - 1)]
        rng.shuffle(choices)
        rows.append({"word": word, "choices": choices, "label": choices.index(output)})
    return {"test": Dataset.from_list(rows)}
