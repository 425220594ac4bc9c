import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.compare import data_of
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.interop import harness
from harmonic_gpt.interop.lm_eval_tasks import documents
from harmonic_gpt.runs.load import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scored(harmonic_run):
    """Our own perplexity in the harness's protocol: windows that do not overlap, an end-of-text token in front of
    all."""
    loaded = load_model(str(harmonic_run))
    stream = data_of(loaded, None).tokens("val")
    ids = np.concatenate([[loaded.tokenizer.eos_token_id], stream.read(0, len(stream))])
    return perplexity(loaded.model, ids, tokenizer=loaded.tokenizer, stride=64)


def test_validation_text_is_the_split_word_for_word(token_folder, exported):
    doc = documents.validation_text(str(exported), data=str(token_folder))["test"][0]
    loaded = load_model(str(exported))
    stream = data_of(loaded, str(token_folder)).tokens("val")
    assert loaded.tokenizer.encode(doc["text"]) == stream.read(0, len(stream)).tolist()


def test_text_files_and_counts_without_the_end_of_text_tokens(exported, tmp_path):
    (tmp_path / "a.txt").write_text("Zwölf Boxkämpfer jagen.")
    doc = documents.validation_text(str(exported), data=str(tmp_path / "a.txt"))["test"][0]
    assert doc["text"].endswith("<|endoftext|>")
    found = documents.process_text(doc, [-5.0])
    assert found["word_perplexity"] == (-5.0, 3)
    assert found["bits_per_byte"] == (-5.0, 25)


@pytest.mark.parametrize("name", sorted(load_tasks()))
def test_relation_questions_have_one_right_answer(name):
    pairs = load_tasks()[name]
    rows = documents.relation(relation=name)["test"]
    assert len(rows) == len(pairs)
    for row, (word, output) in zip(rows, pairs, strict=True):
        right = {o for w, o in pairs if w == word}
        assert row["choices"][row["label"]] == output
        assert len(set(row["choices"])) == documents.CHOICES
        assert len(set(row["choices"]) & right) == 1
    labels = [row["label"] for row in rows]
    assert max(labels.count(i) for i in range(documents.CHOICES)) < 0.5 * len(labels)


def test_every_relation_has_its_task_file():
    names = {path.stem for path in harness.TASKS.glob("relation_*.yaml")}
    assert names == {f"relation_{name.replace('-', '_')}" for name in load_tasks()}


def test_scores_join_the_row_of_the_same_weights(tmp_path, harmonic_run):
    loaded = load_model(str(harmonic_run))
    other = {"name": "other", "weights_sha256": "0"}
    same = {"name": "mine", "weights_sha256": loaded.weights_sha256, "lm_eval": {"lambada": {"acc": 0.1}}}
    harness._write_results(tmp_path, {"models": [other, same]}, loaded, {"validation_text": {"bits_per_byte": 2.0}})
    rows = json.loads((tmp_path / "results.json").read_text())["models"]
    assert rows == [other, same | {"lm_eval": {"lambada": {"acc": 0.1}, "validation_text": {"bits_per_byte": 2.0}}}]


def test_weights_that_are_not_known_are_nobodys_row(tmp_path, harmonic_run):
    loaded = load_model(str(harmonic_run))
    loaded.weights_sha256 = None
    other = {"name": "other", "weights_sha256": None, "lm_eval": {"lambada": {"acc": 0.1}}}
    harness._write_results(tmp_path, {"models": [other]}, loaded, {"lambada": {"acc": 0.9}})
    rows = json.loads((tmp_path / "results.json").read_text())["models"]
    assert rows[0] == other
    assert rows[1]["lm_eval"] == {"lambada": {"acc": 0.9}}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no"):
        harness.evaluate("nowhere", ["validation_text"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="lm-eval"):
        harness.evaluate("nowhere", ["validation_text"])


@pytest.mark.slow
def test_short_form_agrees_with_perplexity_and_reaches_the_card(harmonic_run, scored, tmp_path):
    pytest.importorskip("lm_eval")
    from harmonic_gpt.interop.export import export

    _, scores = harness.evaluate(
        str(harmonic_run), ["validation_text", "relation_antonym"], out=tmp_path / "report", limit=20
    )
    found = scores["validation_text"]
    assert found["bits_per_byte"] == pytest.approx(scored.bits_per_byte, rel=1e-5)
    assert 0 <= scores["relation_antonym"]["acc"] <= 1
    card = (export(str(harmonic_run), tmp_path / "out", report=str(tmp_path / "report")) / "README.md").read_text()
    assert f"| lm-evaluation-harness: validation_text | bits_per_byte | {found['bits_per_byte']:.5g} |" in card
    with pytest.raises(InputError, match="no such task: hellaswagg"):
        harness.evaluate(str(harmonic_run), ["hellaswagg"])


@pytest.mark.slow
def test_the_harness_own_command_line(exported, token_folder, scored, tmp_path):
    pytest.importorskip("lm_eval")
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf",
        "--model_args", f"pretrained={exported},trust_remote_code=True",
        "--device", "cpu", "--include_path", str(harness.TASKS), "--tasks", "validation_text",
        "--metadata", json.dumps({"data": str(token_folder)}), "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    environ = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]["validation_text"]
    assert found["bits_per_byte,none"] == pytest.approx(scored.bits_per_byte, rel=1e-5)
    texts = documents.validation_text(str(exported), data=str(token_folder))["test"][0]["text"].split("<|endoftext|>")
    n_words = sum(len(text.split()) for text in texts)
    assert found["word_perplexity,none"] == pytest.approx(math.exp(scored.nats / n_words), rel=1e-4)
