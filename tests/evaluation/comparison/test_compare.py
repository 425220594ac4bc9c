"""The comparison: numbers that agree with their parts, one model in memory at a time, mistakes before any work."""

import json
import math
import os
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison import compare as module
from harmonic_gpt.evaluation.comparison.compare import compare
from harmonic_gpt.evaluation.comparison.results import SCHEMA_VERSION, read_results
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.runs.load import load_model

pytestmark = pytest.mark.usefixtures("no_figures")


def test_results_agree_with_their_parts(runs, tmp_path, token_folder, capsys):
    out = tmp_path / "report"
    results = compare([str(runs / "harmonic"), str(runs / "standard")], out, tokens=600, reading_tokens=0)
    assert read_results(out) == json.loads((out / "results.json").read_text()) == results
    assert results["schema_version"] == SCHEMA_VERSION
    harmonic, standard = results["models"]
    assert (harmonic["head"], standard["head"]) == ("harmonic", "standard")
    assert harmonic["exponent"] == pytest.approx(math.sqrt(32))
    assert standard["exponent"] is None
    assert harmonic["parameters"] == standard["parameters"]
    assert harmonic["step"] == 12
    loaded = load_model(str(runs / "harmonic"))
    ids = open_token_folder(token_folder).tokens("val").read(0, 600)
    assert harmonic["validation"] == perplexity(loaded.model, ids, tokenizer=loaded.tokenizer).to_dict()
    assert harmonic["weights_sha256"] == loaded.weights_sha256
    assert f"step 12, weights sha256 {loaded.weights_sha256[:12]}" in capsys.readouterr().out
    # No forward pass but the matrices
    assert harmonic["interpretability"]["matrices"]["centers"]["tasks"]
    assert "probes" not in harmonic["interpretability"]
    assert results["comparison"]["similarity"] == []
    assert "## Probes" not in (out / "report.md").read_text()
    compare([str(runs / "harmonic")], out, tokens=600, reading_tokens=0)  # an earlier comparison may be replaced
    assert "there is nothing to compare it with" in (out / "report.md").read_text()


def test_arms_of_several_runs_with_everything_measured(full):
    comparison = full.results["comparison"]
    assert comparison["headlines"]["probes"]["arms"]["harmonic"]["runs"] == 2
    pairs = [(pair["first"], pair["second"]) for pair in comparison["similarity"]]
    assert pairs == [("step-000006", "standard"), ("step-000006", "step-000012")]
    across, within = comparison["similarity"]
    assert np.shape(across["cka"]) == np.shape(across["rsa"]) == (2, 2)
    assert within["cka"][0][0] > across["cka"][0][0]  # two checkpoints of one run are more alike than two runs
    for model in full.results["models"]:
        suite = model["interpretability"]
        assert {row["task"] for row in suite["probes"]} >= {"part of speech", "sentence source", "mood"}
        assert 2000 < sum(suite[key] for key in ("probe_tokens", "text_tokens", "word_tokens")) <= 8000


def test_runs_are_paired_by_the_seeds_of_their_checkpoints(runs, tmp_path, monkeypatch):
    def load(*arguments):
        loaded = load_model(*arguments)
        loaded.state["config"]["seed"] = loaded.step  # four runs of two seeds, from two runs of one
        return loaded

    monkeypatch.setattr(module, "load_model", load)
    arms = {"harmonic": ["harmonic/step-000006", "harmonic/step-000012"],
            "standard": ["standard/step-000012", "standard/step-000006"]}  # fmt: skip
    named = {arm: [str(runs / run) for run in members] for arm, members in arms.items()}
    results = compare(named, tmp_path / "report", tokens=300, reading_tokens=0)
    assert [model["seed"] for model in results["models"]] == [6, 12, 12, 6]
    losses = [model["validation"]["nats_per_token"] for model in results["models"]]
    row = results["comparison"]["differences"][0]["headlines"]["nats"]
    expected = stats.ttest_rel(losses[:2], losses[:1:-1]).confidence_interval(0.95)
    assert row["interval"] == pytest.approx(list(expected))
    assert (row["over"], row["method"]) == ("seeds", "paired by seed")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "over seeds (paired by seed)" in report
    assert "- Intervals of harmonic - standard: paired by seed." in report


def test_one_model_is_in_memory_at_a_time(runs, tmp_path, monkeypatch):
    models: list[weakref.ref] = []

    def load(*arguments):
        assert arguments[1] is None  # the device: CUDA where there is one
        assert [model() for model in models] == [None] * len(models), "a model is still alive while the next one loads"
        loaded = load_model(*arguments)
        models.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(module, "load_model", load)
    names = [str(runs / "harmonic"), str(runs / "standard")]
    compare(names, tmp_path / "report", tokens=300, reading_tokens=1000)
    assert len(models) == 4  # each to be checked, then to be measured
    assert [model() for model in models] == [None] * 4


def test_mistakes_show_before_the_first_model_is_measured(runs, tmp_path, token_folder, monkeypatch):
    damaged = shutil.copytree((runs / "standard" / "latest").resolve(), tmp_path / "damaged")
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("a model was measured"))
    with pytest.raises(InputError, match=r"model\.safetensors does not match its checksum"):
        compare([str(runs / "harmonic"), str(damaged)], tmp_path / "report")
    (tmp_path / "val only").mkdir()
    open_token_folder(token_folder).tokens("val").read(0, 600).astype("<u2").tofile(tmp_path / "val only" / "val.bin")
    with pytest.raises(InputError, match="no train tokens; it has val"):
        compare([str(runs / "harmonic")], tmp_path / "report", data=str(tmp_path / "val only"))


def test_scores_of_the_harness_are_kept_or_the_folder_refused(runs, tmp_path):
    out, scores = tmp_path / "report", {"lambada": {"acc": 0.1}}
    weights = load_model(str(runs / "harmonic")).weights_sha256
    out.mkdir()
    (out / "results.json").write_text(
        json.dumps({"models": [{"name": "mine", "weights_sha256": weights, "lm_eval": scores}]})
    )
    with pytest.raises(InputError, match="scores of lm-eval for mine, which are not among the models to compare"):
        compare([str(runs / "standard")], out, tokens=300, reading_tokens=0)
    assert read_results(out)["models"][0]["lm_eval"] == scores
    compare([str(runs / "harmonic"), str(runs / "standard")], out, tokens=300, reading_tokens=0)
    assert [model.get("lm_eval") for model in read_results(out)["models"]] == [scores, None]


def test_older_checkpoints_and_foreign_models(runs, tmp_path, token_folder):
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    names = [str(runs / "harmonic" / "step-000006"), str(runs / "harmonic" / "step-000012"), str(tmp_path / "gpt2")]
    results = compare(names, tmp_path / "report", data=str(token_folder), tokens=300, reading_tokens=0)
    assert [m["name"] for m in results["models"]] == ["step-000006", "step-000012", "gpt2"]
    assert [m["step"] for m in results["models"]] == [6, 12, None]
    assert results["models"][2]["head"] == "standard"
    report = (tmp_path / "report" / "report.md").read_text()
    assert "The interpretability of gpt2 was not measured: " in report  # it has no tokenizer
    assert "**Not a fair comparison**" in report


def test_models_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    names = [str(runs / head / "step-000012") for head in ("harmonic", "standard")]
    results = compare(names, tmp_path / "report", tokens=300, reading_tokens=0)
    assert list(results["comparison"]["arms"]) == ["harmonic/step-000012", "standard/step-000012"]


def test_runs_of_one_name_and_one_step_are_told_apart_and_arms_of_one_name_refused(runs, tmp_path, monkeypatch):
    names = [str(tmp_path / experiment / "same") for experiment in ("exp1", "exp2")]
    for name, head in zip(names, ("harmonic", "standard"), strict=True):
        shutil.copytree(runs / head, name, symlinks=True)
    results = compare(names, tmp_path / "report", tokens=300, reading_tokens=0)
    arms = ["exp1/same/step-000012", "exp2/same/step-000012"]
    assert list(results["comparison"]["arms"]) == [model["arm"] for model in results["models"]] == arms
    assert (tmp_path / "report" / "report.html").exists()
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("a model was measured"))
    with pytest.raises(InputError, match="two arms are called 'same'"):
        compare({"same": [str(runs / "standard")], names[0]: names[:1]}, tmp_path / "report")


def test_verify_reads_the_token_files_anew(runs, tmp_path, token_folder):
    folder = shutil.copytree(token_folder, tmp_path / "tokens")
    open_token_folder(folder).tokens("val")  # what is right is noted, and not read again
    [file] = open_token_folder(folder).tokens("val").files
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[:2] = content[2:4]
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    arguments = {"data": str(folder), "tokens": 300, "reading_tokens": 0}
    compare([str(runs / "harmonic")], tmp_path / "report", **arguments)
    with pytest.raises(InputError, match="its SHA-256 is not"):
        compare([str(runs / "harmonic")], tmp_path / "report", verify=True, **arguments)


def test_bad_input_is_named(runs, tmp_path, tiny_config, token_folder):
    HarmonicGPT2ForCausalLM(tiny_config()).save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    bert = BertConfig(vocab_size=101, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    harmonic = str(runs / "harmonic")
    cases = [
        ([str(tmp_path / "missing")], {}, "no model at"),
        ([str(tmp_path / "empty")], {}, "no config.json and no checkpoint"),
        ([str(tmp_path / "broken")], {}, "cannot load a causal language model"),
        ([str(tmp_path / "other")], {}, "give --data"),
        ([str(tmp_path / "bert")], {}, "not a causal language model"),
        ([harmonic], {"device": "abacus"}, "device 'abacus'"),
        ([harmonic], {"words": ["zeppelin"]}, "zeppelin: not one token of harmonic"),
        ([harmonic], {"probe_files": [tmp_path / "none.csv"]}, r"none\.csv: cannot be read"),
        ([str(tmp_path / "other")], {"data": str(token_folder)}, "vocabulary of 300"),
        ([harmonic, harmonic], {}, "the same weights are named twice"),
        ([harmonic, f"{harmonic}/latest"], {}, "the same weights are named twice"),
        ([harmonic], {"out": tmp_path / "full"}, "not an earlier comparison"),
    ]
    for names, options, message in cases:
        with pytest.raises(InputError, match=message):
            compare(names, **({"out": tmp_path / "report"} | options))
    assert not (tmp_path / "report").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


def test_a_model_of_nan_is_an_error_not_a_result(tiny_config, tmp_path, token_folder):
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300))
    model.transformer.ln_f.weight.data[0] = math.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        compare([str(tmp_path / "nan")], tmp_path / "report", data=str(token_folder))
    with pytest.raises(FloatingPointError, match="nan"):
        perplexity(model.eval(), open_token_folder(token_folder).tokens("val").read(0, 100))


def test_centers_that_are_all_equal_are_measured(tiny_config, tmp_path, token_folder):
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300))
    model.lm_head.weight.data[:] = 0.1
    model.save_pretrained(tmp_path / "collapsed")
    results = compare([str(tmp_path / "collapsed")], tmp_path / "report", data=str(token_folder), reading_tokens=0)
    assert results["models"][0]["centers"]["components_for_90_percent"] is None
    assert (tmp_path / "report/results.json").is_file()


def test_weights_that_do_not_fit_are_refused(runs, tmp_path):
    shutil.copytree((runs / "harmonic" / "latest").resolve(), tmp_path / "copy")
    (tmp_path / "copy" / "checksums.json").unlink()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(InputError, match=r"do not fit its config\.json"):
        load_model(str(tmp_path / "copy"))


def test_results_of_something_else_are_refused(tmp_path):
    for content in ("[]", "{}", '{"models": [1]}', "no JSON"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(InputError, match="not the results of an evaluation"):
            read_results(tmp_path)
    with pytest.raises(InputError, match="not the results of an evaluation"):
        read_results(tmp_path / "nowhere")


def paths(value: object, path: str = "") -> set[str]:
    """Paths of all that is in a JSON value: "models[].name" of every model."""
    inner: set[str] = set()
    if isinstance(value, dict):
        inner = set().union(*(paths(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()))
    elif isinstance(value, list):
        inner = set().union(*(paths(item, f"{path}[]") for item in value))
    return inner | ({path} if path else set())


def test_the_page_describes_every_field(full):
    """docs/reference/results_json.md: nothing is missing on it, and nothing is on it that is not there."""
    page = (Path(__file__).parents[3] / "docs/reference/results_json.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - {"models[].lm_eval.*"}
    patterns = {name: re.compile(re.escape(name).replace(r"\*", r"[^.\[]+")) for name in described}
    there = paths(full.results)
    whole = {name for name in patterns if any(patterns[name].fullmatch(path) for path in there)}
    assert not sorted(described - whole)
    leaves = {path for path in there if not any(other.startswith((f"{path}.", f"{path}[")) for other in there)}
    missing = {leaf for leaf in leaves if not any(re.match(rf"{p.pattern}($|[.\[])", leaf) for p in patterns.values())}
    assert not sorted(missing)
    assert f"schema version {SCHEMA_VERSION}." in page
    names = re.findall(r"`(\w+)`", page.partition("The keys of `headlines`")[2].partition("|")[0])
    assert names == list(full.results["comparison"]["headlines"])
