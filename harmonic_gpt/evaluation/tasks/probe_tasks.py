"""What probes are asked: files in the format of SST-2 and CoLA, and three tasks that need no download."""

import csv
import io
import json
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from harmonic_gpt.data.pydocs import docstrings
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.names import distinct_names

WORDS = Path(__file__).parent / "parts_of_speech.json"  # written for this project, from common knowledge
MAX_TOKENS = 128  # of an example; more are cut off
SEED = 0  # of which examples are taken
# Modules of the standard library with much prose; parsing all of it takes ten seconds
MODULES = (
    "argparse ast calendar configparser contextlib datetime difflib doctest enum fractions ftplib functools heapq "
    "inspect optparse os random statistics string subprocess tarfile tempfile textwrap threading turtle typing zipfile"
)


@dataclass(frozen=True)
class ProbeTask:
    name: str
    examples: list[list[int]]  # N token sequences
    labels: np.ndarray  # (N,) of str


def _task(name: str, tokenizer: PreTrainedTokenizerBase, texts: list[str], labels: list[str]) -> ProbeTask:
    ids = [tokenizer.encode(text, add_special_tokens=False)[:MAX_TOKENS] for text in texts]
    kept = [i for i, tokens in enumerate(ids) if tokens]
    return ProbeTask(name, [ids[i] for i in kept], np.array([labels[i] for i in kept]))


def _thinned(texts: list[str], labels: list[str], count: int) -> tuple[list[str], list[str]]:
    chosen = np.random.default_rng(SEED).permutation(len(texts))[:count]
    return [texts[i] for i in chosen], [labels[i] for i in chosen]


def load_probe_file(path: str | Path) -> tuple[list[str], list[str]]:
    """(texts, labels) of a .csv, .tsv or .jsonl file.

    Columns "sentence" or "text", and "label" (GLUE's SST-2); or a .tsv without header and with four columns: source,
    label, mark, sentence (CoLA as published). Raises InputError.
    """
    path = Path(path).expanduser()
    expected = 'columns "text" (or "sentence") and "label", or CoLA\'s four columns without header'
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise InputError(f"{path}: expected a .csv, .tsv or .jsonl file with {expected}")
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
        else:
            lines = io.StringIO(content)  # by newlines alone: a text may hold other line ends, as U+2028
            glue = path.suffix == ".tsv"  # GLUE's files do not quote
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if glue else csv.reader(lines)
            table = list(reader)
            if table and len(table[0]) == 4 and "label" not in table[0]:
                table.insert(0, ["source", "label", "mark", "sentence"])
            rows = [dict(zip(table[0], line, strict=True)) for line in table[1:] if line]
        pairs = [(row["sentence"] if "sentence" in row else row["text"], row["label"]) for row in rows]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: expected {expected}, got something else ({type(error).__name__}: {error})"
        ) from error
    if not pairs or not all(isinstance(text, str) and text.strip() for text, _ in pairs):
        raise InputError(f"{path}: every row needs a text; expected {expected}")
    return [text for text, _ in pairs], [str(label) for _, label in pairs]


def load_probe_files(paths: Sequence[str | Path]) -> dict[str, tuple[list[str], list[str]]]:
    """{task: (texts, labels)}. A task has the name of its file; with several of one name (SST-2/dev.tsv, CoLA/dev.tsv)
    their folders too. Raises InputError, also for a file that is there twice."""
    files = [Path(path).expanduser().resolve() for path in paths]
    names = distinct_names([file.stem for file in files], files)
    return {name: load_probe_file(path) for name, path in zip(names, paths, strict=True)}


def file_tasks(paths: Sequence[str | Path], tokenizer: PreTrainedTokenizerBase, most: int) -> list[ProbeTask]:
    """At most `most` examples of each file, chosen at random; longer texts than MAX_TOKENS tokens are cut."""
    held = load_probe_files(paths)
    return [_task(name, tokenizer, *_thinned(texts, labels, most)) for name, (texts, labels) in held.items()]


def part_of_speech(tokenizer: PreTrainedTokenizerBase, most: int) -> ProbeTask:
    """Noun, verb, adjective or adverb, of a word that stands alone. Suffixes may give it away: a word can be several
    tokens."""
    words = json.loads(WORDS.read_text(encoding="utf-8"))
    pairs = [(" " + word, kind) for kind, listed in words.items() for word in listed.split()]
    return _task("part of speech", tokenizer, *_thinned([w for w, _ in pairs], [k for _, k in pairs], most))


def frequency_band(counts: np.ndarray, most: int) -> ProbeTask:
    """Is a token common, middling or rare? Thirds of the tokens that occur, by how often. counts: (V,) in some text."""
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    bands = dict(zip(("common", "middling", "rare"), np.array_split(order, 3), strict=True))
    rng = np.random.default_rng(SEED)
    chosen = [(int(token), name) for name, band in bands.items() for token in rng.permutation(band)[: most // 3]]
    return ProbeTask("token frequency", [[token] for token, _ in chosen], np.array([name for _, name in chosen]))


def two_sources(tokenizer: PreTrainedTokenizerBase, most: int) -> ProbeTask:
    """Is a sentence from Python's language reference or from docstrings of its library? Both come with every Python."""
    rng = np.random.default_rng(SEED)
    pairs = []
    for name, sentences in _python_prose().items():
        pairs += [(sentences[i], name) for i in rng.permutation(len(sentences))[: most // 2]]
    return _task("sentence source", tokenizer, [s for s, _ in pairs], [n for _, n in pairs])


@cache  # parsing takes a second, and each model of a comparison asks
def _python_prose() -> dict[str, list[str]]:
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [docstrings((library / f"{name}.py").read_bytes()) for name in MODULES.split()]
    sources = {"reference": [topics[key] for key in sorted(topics)], "docstrings": modules}
    return {name: sorted({s for text in documents for s in _sentences(text)}) for name, documents in sources.items()}


def _sentences(text: str) -> list[str]:
    """Plain prose of 40 to 120 characters: no markup, no code."""
    sentences = [s for paragraph in text.split("\n\n") for s in re.split(r"(?<=[.!?])\s+", paragraph)]
    sentences = [" ".join(s.split()) for s in sentences]
    return [s for s in sentences if 40 <= len(s) <= 120 and re.fullmatch(r"[A-Z][A-Za-z ,;'-]+\.", s)]


def built_in_tasks(tokenizer: PreTrainedTokenizerBase, counts: np.ndarray | None, most: int) -> list[ProbeTask]:
    """The tasks that need no file; frequency only where `counts` of tokens in a text are known."""
    tasks = [part_of_speech(tokenizer, most), two_sources(tokenizer, most)]
    return tasks if counts is None else [*tasks, frequency_band(counts, most)]
