"""Probes on planted features, where the answer is known."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from harmonic_gpt.evaluation.activations import mean_states
from harmonic_gpt.evaluation.measures.probes import FOLDS, probe, run_probes
from harmonic_gpt.evaluation.tasks.probe_tasks import ProbeTask


def test_a_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    features, direction = rng.normal(size=(300, 8)), rng.normal(size=8)
    linear = probe(features, np.where(features @ direction > 0, "a", "b"))
    assert linear["logistic"]["f1"] > 0.93
    assert linear["mlp"]["f1"] > 0.9
    assert abs(linear["shuffled"]["f1"] - 0.5) < 0.1
    assert len(linear["mlp"]["folds"]) == FOLDS
    assert linear["mlp"]["sd"] == pytest.approx(np.std(linear["mlp"]["folds"], ddof=1))
    exclusive = probe(features, (features[:, 0] > 0) ^ (features[:, 1] > 0))  # needs a hidden layer
    assert exclusive["mlp"]["f1"] > 0.75
    assert exclusive["logistic"]["f1"] < 0.6
    nothing = probe(features, rng.integers(3, size=300))
    assert max(nothing[kind]["f1"] for kind in ("mlp", "logistic", "shuffled")) < 0.45
    rare = np.arange(300) % 10 == 0
    assert probe(features, rare)["majority"]["f1"] == pytest.approx(
        f1_score(rare, np.zeros(300, bool), average="macro")
    )


def test_features_are_standardised():
    features = np.random.default_rng(1).normal(size=(120, 6))
    labels = features[:, 0] > 0
    features[:, 0] = 1e-5 * features[:, 0] + 7  # would be drowned
    assert probe(features, labels)["logistic"]["f1"] > 0.9


def test_a_planted_class_is_found_in_the_layer_that_holds_it(loaded):
    wte = loaded.model.transformer.wte.weight.data
    wte[100:150, 0] += 5 * wte.std()
    task = ProbeTask("planted", [[token] for token in range(50, 150)], np.array(["no"] * 50 + ["yes"] * 50))
    small = ProbeTask("small", [[1], [2], [3]], np.array(["a", "a", "b"]))
    first, last, flagged = run_probes(loaded, [task, small], [0, 2])
    assert first["logistic"]["f1"] > 0.9
    assert first["classes"] == {"no": 50, "yes": 50}
    states = mean_states(loaded.model, task.examples, loaded.tokenizer.eos_token_id)
    for row, layer in ((first, 0), (last, 2)):
        assert row["layer"] == layer
        assert row["mlp"] == probe(states[layer].numpy(), task.labels)["mlp"]
    assert flagged["flag"].startswith("needs two classes")
