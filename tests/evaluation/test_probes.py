"""Probes on planted features, where the answer is known; mean hidden states against a direct loop; files that users
bring."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.cli.probes import run_probes_command
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import hidden_states, mean_states
from harmonic_gpt.evaluation.measures.neighbors import neighbours
from harmonic_gpt.evaluation.measures.probes import FOLDS, probe, run_probes
from harmonic_gpt.evaluation.tasks.probe_tasks import (
    ProbeTask,
    built_in_tasks,
    file_task,
    frequency_band,
    load_probe_file,
)
from harmonic_gpt.evaluation.tasks.word_pairs import single_token_id
from harmonic_gpt.runs.load import LoadedModel


@pytest.fixture
def loaded(tiny_config, token_folder):
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300, n_positions=160))
    return LoadedModel("tiny", "memory", model.eval(), load_tokenizer(token_folder / "tokenizer"), None, None)


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


def test_mean_states_are_those_of_a_direct_loop(loaded):
    examples = [[5], [7, 8, 9], [20, 21], [7, 8, 9, 10, 11]]
    for start in (None, 0):
        found = mean_states(loaded.model, examples, start, batch=3)
        assert len(found) == 3
        for k, example in enumerate(examples):
            row = torch.tensor([example if start is None else [start, *example]])
            for layer, states in enumerate(hidden_states(loaded.model, row)):
                expected = states[0, 0 if start is None else 1 :].mean(0)
                torch.testing.assert_close(found[layer][k], expected, atol=1e-5, rtol=1e-4)


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


def test_built_in_tasks_need_no_download(loaded):
    counts = np.zeros(300, int)
    counts[:90] = np.arange(90, 0, -1)
    speech, sources, frequency = built_in_tasks(loaded.tokenizer, counts, 300)
    assert set(speech.labels) == {"noun", "verb", "adjective", "adverb"}
    assert np.unique(sources.labels, return_counts=True)[1].tolist() == [150, 150]
    assert sum(len(e) for e in sources.examples) < 300 * 129
    bands = {"common": set(), "middling": set(), "rare": set()}
    for [token], label in zip(frequency.examples, frequency.labels, strict=True):
        bands[label].add(token)
    assert bands == {"common": set(range(30)), "middling": set(range(30, 60)), "rare": set(range(60, 90))}
    assert len(built_in_tasks(loaded.tokenizer, None, 60)) == 2
    assert frequency_band(counts, 30).examples == frequency_band(counts, 30).examples


def test_files_in_the_formats_of_sst2_and_cola(tmp_path, loaded):
    sst2 = tmp_path / "sst2.tsv"
    sst2.write_text('sentence\tlabel\n"a fine film \t1\ndull\t0\n')
    assert load_probe_file(sst2) == (['"a fine film ', "dull"], ["1", "0"])
    cola = tmp_path / "cola.tsv"
    cola.write_text("gj04\t1\t\tOur friends won.\ngj04\t0\t*\tThey drank the pub.\n")
    assert load_probe_file(cola) == (["Our friends won.", "They drank the pub."], ["1", "0"])
    table = tmp_path / "mine.csv"
    table.write_text('text,label\n"one, two",x\nthree,y\n')
    assert load_probe_file(table) == (["one, two", "three"], ["x", "y"])
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"text": "one", "label": 0}\n\n{"text": "two", "label": 1}\n')
    assert load_probe_file(lines) == (["one", "two"], ["0", "1"])
    assert len(file_task(table, loaded.tokenizer, 1).examples) == 1
    for name, content, message in (
        ("a.txt", "x", "expected a .csv"),
        ("b.csv", "words,kind\na,b\n", "KeyError"),
        ("c.csv", "text,label\na,b,c\n", "expected columns"),
        ("d.jsonl", '{"text": "a"}\n', "expected columns"),
        ("e.csv", "text,label\n", "needs a text"),
        ("f.csv", "text,label\n ,1\n", "needs a text"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            load_probe_file(tmp_path / name)


def test_neighbours_of_a_planted_twin(loaded):
    words = [
        w for w in ("cat", "dog", "the", "house", "tree", "bird") if single_token_id(loaded.tokenizer, w) is not None
    ]
    one, other = (single_token_id(loaded.tokenizer, w) for w in words[:2])
    centers = loaded.model.get_output_embeddings().weight.data
    centers[one] = centers[other] + 1e-4
    row = neighbours(loaded, [words[0]])["words"][0]
    assert row["nearest"][0].strip() == words[1]
    assert words[0] not in [w.strip() for w in row["nearest"]]
    assert row["scores"] == sorted(row["scores"])
    with pytest.raises(InputError, match="zeppelin: not one token of tiny"):
        neighbours(loaded, ["zeppelin"])


def test_the_verb_prints_and_writes_and_refuses(loaded, tmp_path, capsys):
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    texts = tmp_path / "mine.csv"
    texts.write_text("text,label\n" + "".join(f"The {w} sees {i}.,{w}\n" for i in range(10) for w in ("cat", "dog")))
    model, out = str(tmp_path / "model"), tmp_path / "probes.json"
    rows = run_probes_command(model, [str(texts)], "0,2", 100, None, str(out), "cpu")
    assert [(row["task"], row["layer"]) for row in rows] == [("mine", 0), ("mine", 2)]
    assert json.loads(out.read_text()) == rows
    assert rows[0]["logistic"]["f1"] > 0.9
    assert "mine" in capsys.readouterr().out
    for layers, target, message in (
        ("a", None, "expected numbers"),
        ("0,9", None, "asked for"),
        ("0", str(out), "exists already"),
    ):
        with pytest.raises(InputError, match=message):
            run_probes_command(model, [str(texts)], layers, 100, None, target, "cpu")
