import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import harmonic_gpt
from harmonic_gpt.__main__ import main
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.compare import compare
from harmonic_gpt.interop.card import Measurements, model_card
from harmonic_gpt.interop.export import _write_tokenizer, check_folder, export
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.metrics import read_metrics
from tests.aligned import aligned
from tests.hub_stand_in import TOKEN
from tests.interop import environments

# In a process that has loaded nothing before. `sys.argv`: folder, the card's example
EXAMPLES = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert tokenizer.padding_side == "left"
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
greedy = {"max_new_tokens": 12, "do_sample": False}
prompts = ["The cat sees", "Story 7. The dog finds the river. The bird likes"]
batch = tokenizer(prompts, return_tensors="pt", padding=True)
together = model.generate(**batch, **greedy)[:, batch.input_ids.shape[1] :]
for row, prompt in zip(together, prompts):
    alone = tokenizer(prompt, return_tensors="pt")
    assert row.tolist() == model.generate(**alone, **greedy)[0, alone.input_ids.shape[1] :].tolist(), prompt
exec(sys.argv[2])
"""


UNMEASURED = Measurements("Nothing has been measured.")


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code or 0


def test_export_holds_everything_but_the_training_state(exported):
    names = {path.name for path in exported.iterdir()}
    own = {path.name for path in (Path(harmonic_gpt.__file__).parent / "model").glob("*.py")}
    code = own - {"__init__.py"}
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert names == code | weights | {"tokenizer.json", "tokenizer_config.json", "README.md", "figures"}


def test_batches_are_continued_and_the_cards_example_runs(exported, tmp_path):
    assert json.loads((exported / "tokenizer_config.json").read_text())["padding_side"] == "left"
    (example,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    example = re.sub(r'model="[^"]*"', f'model="{exported}"', example)
    shown = environments.run(Path(sys.executable), EXAMPLES, tmp_path, str(exported), example)
    assert shown.startswith("The")
    assert len(shown) > 10


def test_a_loaded_tokenizer_is_left_as_it_was(harmonic_run, tmp_path):
    loaded = load_model(str(harmonic_run))
    _write_tokenizer(loaded, tmp_path)
    assert (loaded.tokenizer.padding_side, loaded.tokenizer.pad_token) == ("right", None)


def test_weights_are_the_runs(exported, harmonic_run):
    ids = torch.arange(20)[None]
    ours = aligned(load_model(str(harmonic_run)).model)(ids).logits
    assert torch.equal(aligned(AutoModelForCausalLM.from_pretrained(exported))(ids).logits, ours)


def test_card_says_what_was_measured_and_how_it_was_trained(exported, harmonic_run):
    card = ModelCard.load(exported / "README.md")
    last = read_metrics(harmonic_run)[-1]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {
        "loss": pytest.approx(last["val_loss"], rel=1e-5),
        "perplexity": pytest.approx(last["val_perplexity"], rel=1e-5),
    }
    assert card.data.library_name == "transformers"
    assert "30 steps, 15,360 tokens" in card.text
    assert "batch_tokens: 512" in card.text
    assert "‖x − w_j‖⁻ⁿ, n = 5.65685" in card.text
    assert str(harmonic_run.parent) not in card.content  # nothing of this machine
    assert (exported / "figures/loss.png").stat().st_size > 5000


def test_card_says_in_bold_what_a_plain_gpt2_makes_of_the_weights(exported, standard_run):
    """The claim itself is tested too: it loads, and computes dot products."""
    (bold,) = re.findall(r"\n\*\*(.*?)\*\*\n", (exported / "README.md").read_text(), re.DOTALL)
    assert "`GPT2LMHeadModel.from_pretrained`" in bold
    assert "its probabilities are wrong" in bold
    ids = torch.arange(20)[None]
    plain = GPT2LMHeadModel.from_pretrained(exported, output_hidden_states=True)(ids)
    products = plain.hidden_states[-1] @ plain_centers(exported).T
    torch.testing.assert_close(plain.logits, products, rtol=1e-4, atol=1e-4)
    ours = load_model(str(exported)).model(ids).logits
    assert (plain.logits.log_softmax(-1) - ours).abs().max() > 0.1
    standard = load_model(str(standard_run))
    assert "GPT2LMHeadModel" not in model_card(standard, "tiny", UNMEASURED).content
    standard_ids = GPT2LMHeadModel.from_pretrained(standard.path)(ids).logits
    torch.testing.assert_close(standard_ids, standard.model(ids).logits)
    standard.model.lm_head._fixed_scale = 0.5
    assert "GPT2LMHeadModel" in model_card(standard, "tiny", UNMEASURED).content


def plain_centers(folder):
    return load_file(folder / "model.safetensors")["transformer.wte.weight"]


@pytest.mark.parametrize("commit", ["0123abcd" * 5, None])
def test_card_names_the_commit_where_there_is_one(harmonic_run, commit):
    loaded = load_model(str(harmonic_run))
    loaded.state["git_commit"] = commit
    text = model_card(loaded, "tiny", UNMEASURED).text
    assert ("commit" in text) == (commit is not None)
    assert (f"commit `{commit}`" in text) == (commit is not None)
    assert "None" not in text


def test_a_run_without_matplotlib_has_no_figure(harmonic_run, tmp_path, monkeypatch):
    monkeypatch.setattr("harmonic_gpt.interop.export.find_spec", lambda _name: None)
    out = export(str(harmonic_run), tmp_path / "out")
    assert "![" not in (out / "README.md").read_text()
    assert not (out / "figures").exists()


def test_card_names_public_sources_and_no_local_path(harmonic_run):
    loaded = load_model(str(harmonic_run))
    loaded.state["config"]["data"]["source"] = ["openwebtext", "/home/ann/diary.txt"]
    loaded.state["config"]["data"]["weights"] = {"/home/ann/diary.txt": 1.0}
    loaded.state["config"]["model"]["init_from"] = "/home/ann/runs/first/step-10"
    loaded.state["config"]["model"]["prior"] = "/home/ann/prior.npy"
    card = model_card(loaded, "tiny", UNMEASURED)
    assert card.data.datasets == ["Skylion007/openwebtext"]
    assert "datasets/Skylion007/openwebtext) and local text files" in card.text
    assert "starting from the weights of `step-10`" in card.text
    assert "/home/ann" not in card.content


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        (
            "BabyLM-community/BabyLM-2026-Strict-Small,split=train,column=text",
            "BabyLM-community/BabyLM-2026-Strict-Small",
        ),
        ("openwebtext,split=train", "Skylion007/openwebtext"),
        ("ann/corpus-1.5,revision=main", "ann/corpus-1.5"),
        ("ann/books", "ann/books"),
        ("texts/books,column=body", None),
        ("ann/diary.txt", None),
        ("ann/diary-1.5", None),
    ],
)
def test_card_tells_datasets_of_the_hub_from_local_files(harmonic_run, tmp_path, monkeypatch, source, dataset):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts/books").mkdir(parents=True)
    loaded = load_model(str(harmonic_run))
    loaded.state["config"]["data"]["source"] = source
    card = model_card(loaded, "tiny", UNMEASURED)
    assert card.data.datasets == (dataset and [dataset])
    assert (f"datasets/{dataset})" in card.text) == (dataset is not None)
    assert ("local text files" in card.text) == (dataset is None)
    assert (source in card.text) == (dataset is not None)  # among the settings


def test_card_knows_the_embedded_corpus_by_any_name(harmonic_run):
    loaded = load_model(str(harmonic_run))
    loaded.state["config"]["data"]["source"] = "pydocs,name=prose"
    card = model_card(loaded, "tiny", UNMEASURED)
    assert "the English prose that every Python carries" in card.text
    assert card.data.language == "en"


def test_a_report_gives_numbers_and_figures_but_only_of_the_same_weights(harmonic_run, standard_run, tmp_path):
    results = compare([str(harmonic_run), str(standard_run)], tmp_path / "report", tokens=500, reading_tokens=0)
    out = export(
        str(harmonic_run), tmp_path / "out", report=str(tmp_path / "report"), license="apache-2.0", repo="ann/tiny"
    )
    card = ModelCard.load(out / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    validation = results["models"][0]["validation"]
    assert values["bits_per_byte"] == pytest.approx(validation["bits_per_byte"], rel=1e-5)
    assert values["loss"] == pytest.approx(validation["nats_per_token"], rel=1e-5)
    assert card.data.license == "apache-2.0"
    assert 'model="ann/tiny"' in card.text
    assert {path.name for path in (out / "figures").iterdir()} == {
        path.name for path in (tmp_path / "report").glob("*.png")
    }
    results["models"] = results["models"][1:]
    (tmp_path / "report/results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="no model with the weights"):
        export(str(harmonic_run), tmp_path / "other", report=str(tmp_path / "report"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "report"]


def test_export_never_overwrites(exported, harmonic_run):
    with pytest.raises(InputError, match="exists"):
        export(str(harmonic_run), exported)


def test_a_plain_gpt2_can_be_exported(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=16)).save_pretrained(
        tmp_path / "gpt2"
    )
    out = export(str(tmp_path / "gpt2"), tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "Nothing has been measured" in text
    assert "trust_remote_code" not in text


def test_a_model_that_is_no_gpt2_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "llama")
    message = r"llama: expected a GPT-2 \(model type harmonic_gpt2 or gpt2\), got model type llama"
    with pytest.raises(InputError, match=message):
        export(str(tmp_path / "llama"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_damaged_folder_is_not_published(exported, tmp_path):
    for name in ("model.safetensors", "harmonic_head.py", "README.md", "figures/loss.png", "config.json"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(exported, copy)
        (copy / name).unlink()
        with pytest.raises(InputError, match="cannot be published"):
            check_folder(copy)


def test_a_card_that_its_owner_edited_is_published(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "mine")
    with (tmp_path / "mine/README.md").open("a") as card:
        card.write('[use](#use) [x](LICENSE "title") [m](mailto:a@b.c) `d[k](y)` ![w](https://example.com/w.png)')
    check_folder(tmp_path / "mine")


def test_push_publishes_what_export_writes(hub, harmonic_run, exported, capsys):
    assert run("push", harmonic_run, "--repo", "ann/tiny", "--private") == 0
    assert f"{hub.url}/ann/tiny/commit/" in capsys.readouterr().out
    published = hub.files["ann/tiny"]["main"]
    assert published["model.safetensors"] == (exported / "model.safetensors").read_bytes()
    assert b'model="ann/tiny"' in published["README.md"]
    assert hub.private["ann/tiny"]


def test_push_of_an_export_sends_it_as_it_is(hub, exported):
    assert run("push", exported, "--repo", "ann/tiny") == 0
    files = {str(path.relative_to(exported)): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    assert hub.files["ann/tiny"]["main"] == files


@pytest.mark.parametrize(("status", "code"), [(401, 2), (403, 2), (500, 4), (0, 4)])
def test_refused_pushes_are_one_line(hub, exported, capfd, status, code):
    hub.fail("/preupload/", status)
    assert run("push", exported, "--repo", "ann/tiny") == code
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert "nothing was published" in error
    assert error.count("\n") == 1
    assert TOKEN not in error
