"""Analogies on planted geometry."""

import numpy as np

from harmonic_gpt.evaluation.measures.analogies import analogy_ranks
from tests.evaluation.measures.planted import pairs, planted


def test_analogies_are_answered_where_there_are_any_and_ties_count_against():
    def ranks(kind: str) -> dict[str, np.ndarray]:
        return analogy_ranks(planted(kind), {"task": pairs().ids})["task"]

    assert (ranks("lattice")["distance"] == 0).all()
    assert (ranks("random")["distance"] < 5).mean() < 0.2
    assert (ranks("near")["no offset"] == 0).all()
    assert (ranks("point")["distance"] > 300).all()
