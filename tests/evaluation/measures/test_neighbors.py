"""Nearest words on a planted twin."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.measures.neighbors import neighbors
from harmonic_gpt.evaluation.tasks.word_pairs import single_token_id


def test_neighbors_of_a_planted_twin(loaded):
    words = [
        w for w in ("cat", "dog", "the", "house", "tree", "bird") if single_token_id(loaded.tokenizer, w) is not None
    ]
    one, other = (single_token_id(loaded.tokenizer, w) for w in words[:2])
    centers = loaded.model.get_output_embeddings().weight.data
    centers[one] = centers[other] + 1e-4
    row = neighbors(loaded, [words[0]])["words"][0]
    assert row["nearest"][0].strip() == words[1]
    assert words[0] not in [w.strip() for w in row["nearest"]]
    assert row["scores"] == sorted(row["scores"])
    with pytest.raises(InputError, match="zeppelin: not one token of tiny"):
        neighbors(loaded, ["zeppelin"])
