"""Which tokens lie nearest to chosen words."""

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import centers_of, is_euclidean
from harmonic_gpt.evaluation.measures.geometry import nearest_rows
from harmonic_gpt.evaluation.tasks.word_pairs import single_token_id
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.runs.load import LoadedModel

# Shown unless others are asked for: as many as are single tokens, of each kind some
# fmt: off
WORDS = ["three", "first", "city", "king", "river", "red", "large", "good", "write", "called", "always", "because",
         "she", "Monday", "France"]
# fmt: on
MAX_WORDS = 8  # of those
NEAREST = 6


def word_tokens(loaded: LoadedModel, words: list[str] | None = None) -> dict[str, int]:
    """The token of each word, after a space; of the default WORDS those that have one. Raises InputError for other
    words without one."""
    tokenizer = tokenizer_of(loaded)
    tokens = {word: single_token_id(tokenizer, word) for word in words or WORDS}
    if words and (unknown := [word for word in words if tokens[word] is None]):
        raise InputError(f"--words: {', '.join(unknown)}: not one token of {loaded.name}")
    known = {word: token for word, token in tokens.items() if token is not None}
    return known if words else dict(list(known.items())[:MAX_WORDS])


def neighbors(loaded: LoadedModel, words: list[str] | None = None) -> dict:
    """{"by", "words": [{"word", "nearest": [token text], "scores"}]}: the centers nearest to each word's own, that one
    left out.

    By the model's own measure: distance for Euclidean heads, for dot products the cosine (a dot product would list the
    longest rows).
    """
    tokenizer, known = tokenizer_of(loaded), word_tokens(loaded, words)
    by = "distance" if is_euclidean(loaded.model) else "cosine"
    rows: list[dict] = []
    if not known:
        return {"by": by, "words": rows}
    centers = centers_of(loaded.model)
    nearest, scores = nearest_rows(centers, centers[list(known.values())], min(NEAREST + 1, len(centers)), by)
    for (word, token), ids, values in zip(known.items(), nearest.tolist(), scores.tolist(), strict=True):
        others = [(i, score) for i, score in zip(ids, values, strict=True) if i != token][:NEAREST]
        texts = [str(tokenizer.decode([i])) for i, _ in others]
        rows.append({"word": word, "nearest": texts, "scores": [score for _, score in others]})
    return {"by": by, "words": rows}
