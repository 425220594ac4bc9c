"""The comparison: numbers that agree with their parts, files that a reader can use."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.compare import SCHEMA_VERSION, compare
from harmonic_gpt.evaluation.comparison.report import model_table, verdict
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.evaluation.sample import sample
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.training import loop


@pytest.fixture(scope="module")
def runs(tmp_path_factory, token_folder):
    from harmonic_gpt.run_config import load_run_config

    folder = tmp_path_factory.mktemp("runs")
    for head in ("harmonic", "standard"):
        arguments = [
            f"--run_dir={folder / head}",
            f"--data.dir={token_folder}",
            "--model.n_layer=1",
            "--model.n_head=2",
            "--model.n_embd=32",
        ]
        arguments += [
            "--model.n_positions=32",
            "--train.batch_tokens=256",
            "--train.steps=12",
            "--optim.warmup_steps=2",
            "--optim.lr=1e-2",
        ]
        arguments += ["--train.log_every=1", "--eval.every=4", "--checkpoint.every=6"]
        if head == "standard":
            arguments += ["--model.similarity=dot", "--model.normalization=softmax"]
        loop.train(load_run_config(None, arguments))
    return folder


def test_results_report_and_figures(runs, tmp_path, token_folder, capsys):
    results = compare(
        [str(runs / "harmonic"), str(runs / "standard")], tmp_path / "report", tokens=600, reading_tokens=8000
    )
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == results
    assert results["schema_version"] == SCHEMA_VERSION
    harmonic, standard = results["models"]
    assert (harmonic["head"], standard["head"]) == ("harmonic", "standard")
    assert harmonic["exponent"] == pytest.approx(math.sqrt(32))
    assert standard["exponent"] is None
    assert harmonic["parameters"] == standard["parameters"]
    assert harmonic["step"] == 12
    loaded = load_model(str(runs / "harmonic"))
    ids = open_token_folder(token_folder).tokens("val").read(0, 600)
    expected = perplexity(loaded.model, ids, tokenizer=loaded.tokenizer)
    assert harmonic["validation"] == expected.to_dict()
    assert harmonic["weights_sha256"] == loaded.weights_sha256
    assert f"step 12, weights sha256 {loaded.weights_sha256[:12]}" in capsys.readouterr().out
    report = (tmp_path / "report" / "report.md").read_text()
    for cells in model_table(results)[1]:
        assert "| " + " | ".join(cells) + " |" in report
    for name in ("loss_curves.png", "explained_variance.png"):
        assert name in report
        assert Image.open(tmp_path / "report" / name).size[0] > 600
    compare(
        [str(runs / "harmonic")], tmp_path / "report", tokens=600, reading_tokens=0
    )  # an earlier comparison may be replaced


def test_arms_of_several_runs_with_everything_in_the_report(runs, tmp_path):
    (tmp_path / "mood.csv").write_text(
        "text,label\n" + "".join(f"The cat {w} {i}.,{w}\n" for i in range(20) for w in ("sees", "finds"))
    )
    arms = {"harmonic": ["harmonic/step-000006", "harmonic/step-000012"], "standard": ["standard"]}
    named = {arm: [str(runs / run) for run in members] for arm, members in arms.items()}
    results = compare(named, tmp_path / "report", tokens=600, reading_tokens=8000, probe_files=[tmp_path / "mood.csv"])
    comparison, readings = results["comparison"], [m["interpretability"] for m in results["models"]]
    assert comparison["headlines"]["probes"]["arms"]["harmonic"]["runs"] == 2
    assert [(p["first"], p["second"]) for p in comparison["similarity"]] == [
        ("step-000006", "standard"),
        ("step-000006", "step-000012"),
    ]
    across, within = comparison["similarity"]
    assert np.shape(across["cka"]) == np.shape(across["rsa"]) == (2, 2)
    assert within["cka"][0][0] > across["cka"][0][0]  # two checkpoints of one run are more alike than two runs
    for reading in readings:
        assert {row["task"] for row in reading["probes"]} >= {"part of speech", "sentence source", "mood"}
        assert 2000 < sum(reading[key] for key in ("probe_tokens", "text_tokens", "word_tokens")) <= 8000
    report = (tmp_path / "report" / "report.md").read_text()
    for name in (
        "parallelograms_paper",
        "layers",
        "probes",
        "similarity",
        "center_norms",
        "loss_curves",
        "explained_variance",
    ):
        assert f"({name}.png)" in report
        assert (tmp_path / "report" / f"{name}.svg").stat().st_size > 5000
    assert "mood, layer 1" in report
    assert 'src="data:image/png;base64,' in (tmp_path / "report" / "report.html").read_text()


def test_no_reading_tokens_means_no_forward_pass_but_the_matrices(runs, tmp_path):
    results = compare(
        [str(runs / "harmonic"), str(runs / "standard")], tmp_path / "report", tokens=600, reading_tokens=0
    )
    assert "probes" not in results["models"][0]["interpretability"]
    assert results["comparison"]["similarity"] == []
    assert "## Probes" not in (tmp_path / "report" / "report.md").read_text()


def test_verdict_says_who_and_by_how_much():
    def model(name, nats):
        return {"name": name, "validation": {"nats_per_token": nats}}

    text = verdict({"models": [model("a", 2.0), model("b", 2.1)]})
    assert text.startswith("Best at prediction: a; b needs 5.00% more nats.")
    assert "spread over seeds is not known" in text


def test_older_checkpoints_and_foreign_models(runs, tmp_path, token_folder):
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=32)).save_pretrained(
        tmp_path / "gpt2"
    )
    names = [str(runs / "harmonic" / "step-000006"), str(runs / "harmonic" / "step-000012"), str(tmp_path / "gpt2")]
    results = compare(names, tmp_path / "report", data=str(token_folder), tokens=300, reading_tokens=8000)
    assert [m["name"] for m in results["models"]] == ["step-000006", "step-000012", "gpt2"]
    assert [m["step"] for m in results["models"]] == [6, 12, None]
    assert results["models"][2]["head"] == "standard"


def test_sampling(runs):
    loaded = load_model(str(runs / "harmonic"))
    a, b = sample(loaded, "The cat", max_new_tokens=8, count=2)
    assert a.startswith("The cat")
    assert a != b
    assert sample(loaded, "The cat", max_new_tokens=8, count=2) == [a, b]
    assert sample(loaded, "", max_new_tokens=4, temperature=0)
    with pytest.raises(InputError, match="exceed the model's 32 positions"):
        sample(loaded, "The cat", max_new_tokens=32)


def test_bad_input_is_named(runs, tmp_path, tiny_config, token_folder):
    HarmonicGPT2ForCausalLM(tiny_config()).save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    BertForMaskedLM(
        BertConfig(vocab_size=101, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "bert")
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


def test_weights_that_do_not_fit_are_refused(runs, tmp_path):
    shutil.copytree((runs / "harmonic" / "latest").resolve(), tmp_path / "copy")
    (tmp_path / "copy" / "checksums.json").unlink()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(InputError, match=r"do not fit its config\.json"):
        load_model(str(tmp_path / "copy"))
