"""Relation tasks: pairs of words that stand in one relation, such as present and past; which tokens stand for the
words.

Files are in the function-vectors format (Todd et al. 2023, arXiv 2310.15213): one JSON list of {"input", "output"} a
task.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from harmonic_gpt.errors import InputError

BUILT_IN = Path(__file__).parent / "pairs"  # written for this project, from common knowledge
Pairs = list[tuple[str, str]]


def load_tasks(folder: str | Path | None = None) -> dict[str, Pairs]:
    """Every task of a folder of JSON files, by file name; None: the built-in ones. Raises InputError for a file of
    another format."""
    folder = Path(folder).expanduser() if folder else BUILT_IN
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise InputError(
            f'{folder}: no word pairs; expected a folder of .json files, each a list of {{"input": ..., "output": ...}}'
        )
    tasks = {}
    for file in files:
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            pairs = [(row["input"], row["output"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{file}: expected a list of {{"input": ..., "output": ...}}, got something else '
                f"({type(error).__name__}: {error})"
            ) from error
        if not all(isinstance(word, str) and word.strip() for pair in pairs for word in pair):
            raise InputError(f"{file}: every input and output must be a word")
        tasks[file.stem] = [(a.strip(), b.strip()) for a, b in pairs]
    return tasks


@dataclass(frozen=True)
class TokenPairs:
    """The pairs of a task that a protocol can use, as tokens."""

    ids: np.ndarray  # (P, 2) int64
    words: Pairs  # the P pairs
    coverage: dict  # counts of what was left out, and why


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def single_token_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int | None:
    """The one token that is `word` as it stands within a sentence, after a space; None if the word takes several."""
    ids = _ids(tokenizer, " " + word)
    if len(ids) != 1:  # SentencePiece tokenizers put the space there themselves
        bare = _ids(tokenizer, word)
        ids = bare if len(bare) == 1 and str(tokenizer.convert_ids_to_tokens(bare[0])).startswith("▁") else ids
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def token_pairs(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, protocol: str) -> TokenPairs:
    """Tokens of the words.

    Args:
        protocol: "paper": every pair, a word stands as its last token, without a leading space (PAPER: the published
            code); "strict": pairs whose words are both single tokens after a space, each pair of tokens once, words
            that share their token left out.
    """
    unknown, kept, words, seen = 0, [], [], set()
    single = [(single_token_id(tokenizer, a), single_token_id(tokenizer, b)) for a, b in pairs]
    repeated = same_token = 0
    for (a, b), (one_a, one_b) in zip(pairs, single, strict=True):
        ids_a, ids_b = _ids(tokenizer, a), _ids(tokenizer, b)
        if not ids_a or not ids_b or tokenizer.unk_token_id in (*ids_a, *ids_b):
            unknown += 1
            continue
        if protocol == "paper":
            chosen = (ids_a[-1], ids_b[-1])
        elif one_a is None or one_b is None:
            continue
        else:
            chosen = (one_a, one_b)
            if chosen in seen or one_a == one_b:
                repeated, same_token = repeated + (chosen in seen), same_token + (one_a == one_b)
                continue
        seen.add(chosen)
        kept.append(chosen)
        words.append((a, b))
    coverage = {
        "pairs": len(pairs),
        "single_token_pairs": sum(a is not None and b is not None for a, b in single),
        "unknown": unknown,
        "repeated": repeated,
        "same_token": same_token,
        "used": len(kept),
    }
    return TokenPairs(np.array(kept, np.int64).reshape(-1, 2), words, coverage)


def draw_quadruples(pairs: int, count: int, seed: int) -> np.ndarray:
    """(count, 2) indices of two different pairs each, drawn with replacement between quadruples: the paper's
    protocol."""
    rng = np.random.default_rng(seed)
    first = rng.integers(pairs, size=count)
    second = (first + rng.integers(1, pairs, size=count)) % pairs
    return np.stack([first, second], 1)


def trivial(ids: np.ndarray, quadruples: np.ndarray) -> np.ndarray:
    """Which quadruples have loss 0 whatever the embedding: {i, n} and {j, m} are the same tokens. (Q,) bool."""
    (i, j), (m, n) = ids[quadruples[:, 0]].T, ids[quadruples[:, 1]].T
    return ((i == j) & (n == m)) | ((i == m) & (n == j))
