"""Training as its user sees it: losses, folders, resume, signals, faults."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import distributed, loop


def losses(run_dir):
    return [row["loss"] for row in read_metrics(run_dir) if "loss" in row]


def weights(run_dir):
    return load_file(run_dir / "latest" / "model.safetensors")


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("head", ["harmonic", "standard"])
def test_it_learns_and_leaves_a_ready_hugging_face_folder(run_config, tmp_path, token_folder, head):
    overrides = {"model__similarity": "dot", "model__normalization": "softmax"} if head == "standard" else {}
    config = run_config(train__steps=80, optim__lr=1e-2, eval__every=40, checkpoint__every=40, **overrides)
    assert loop.train(config) == 0
    run_dir = tmp_path / "run"
    rows = read_metrics(run_dir)
    validation = [row["val_loss"] for row in rows if "val_loss" in row]
    assert validation[-1] < 2.0  # a uniform guess costs log(300) = 5.7
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 81))
    latest = run_dir / "latest"
    assert latest.resolve().name == "step-000080"
    model = AutoModelForCausalLM.from_pretrained(latest)
    tokenizer = AutoTokenizer.from_pretrained(latest)
    assert isinstance(model, HarmonicGPT2ForCausalLM)
    assert model.config.eos_token_id == model.config.bos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    text = tokenizer.decode(
        model.generate(**tokenizer("The cat", return_tensors="pt"), max_new_tokens=12, do_sample=False)[0]
    )
    assert text.startswith("The cat")
    state = json.loads((latest / "state.json").read_text())
    assert (state["step"], state["tokens"], state["world_size"]) == (80, 80 * 256, 1)
    assert state["config"]["model"]["n_embd"] == 32
    assert {"modeling_harmonic_gpt2.py", "harmonic_head.py", "configuration_harmonic_gpt2.py"} <= {
        p.name for p in latest.iterdir()
    }
    assert (run_dir / "config.yaml").exists()


def test_the_same_config_gives_the_same_losses(run_config, tmp_path):
    for name in ("a", "b"):
        loop.train(run_config(run_dir=tmp_path / name))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    loop.train(run_config(run_dir=tmp_path / "c", seed=1))
    assert losses(tmp_path / "c") != losses(tmp_path / "a")


def test_micro_batches_do_not_change_the_losses(run_config, tmp_path):
    """256 tokens a step as 1 x 8, 2 x 4 and 3 + 3 + 2 sequences: sums over tokens, divided once."""
    for size in (8, 4, 3):
        loop.train(run_config(run_dir=tmp_path / str(size), train__micro_batch_size=size))
    for size in (4, 3):
        assert losses(tmp_path / str(size)) == pytest.approx(losses(tmp_path / "8"), rel=1e-5)


@pytest.mark.parametrize("optimizer", [{}, {"optim__optimizer": "muon", "optim__head_lr_scale": 2.0}])
def test_resume_is_exact(run_config, tmp_path, optimizer):
    """6 steps in one go, and 3, a new process's worth of state, 3: the same losses and weights, dropout and
    accumulation on."""
    options = {"model__dropout": 0.1, "train__micro_batch_size": 3, **optimizer}
    loop.train(run_config(run_dir=tmp_path / "whole", **options))
    stopped = run_config(run_dir=tmp_path / "parts", **options)
    run = loop.setup(stopped, resume=False)
    for _ in range(3):
        loop.train_step(run)
    loop.save(run)
    run.tracker.close()
    torch.manual_seed(99)  # whatever the process did before must not matter
    assert loop.train(stopped, resume=True) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")[3:]
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_interrupt_leaves_a_checkpoint_that_resumes(run_config, tmp_path, monkeypatch):
    loop.train(run_config(run_dir=tmp_path / "whole"))
    real = loop.train_step

    def interrupted(run):
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run)

    monkeypatch.setattr(loop, "train_step", interrupted)
    config = run_config(checkpoint__every=100)
    assert loop.train(config) == 128 + signal.SIGINT
    assert [p.name for p in ckpt.checkpoints(tmp_path / "run")] == ["step-000004"]
    monkeypatch.setattr(loop, "train_step", real)
    assert loop.train(config, resume=True) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_resume_without_a_checkpoint_starts_and_of_a_finished_run_does_nothing(run_config, tmp_path):
    assert loop.train(run_config(), resume=True) == 0
    before = losses(tmp_path / "run")
    assert loop.train(run_config(), resume=True) == 0
    assert losses(tmp_path / "run") == before


def test_an_existing_run_is_never_overwritten(run_config, tmp_path):
    loop.train(run_config())
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        loop.train(run_config())
    for wrong in (tmp_path / "run" / "latest", tmp_path):
        with pytest.raises(InputError, match="not a run of this program"):
            loop.train(run_config(run_dir=wrong), resume=True)
    with pytest.raises(InputError, match=r"optim\.lr: 0\.003 -> 0\.001"):
        loop.train(run_config(optim__lr=1e-3), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_the_page_describes_every_file_and_field(run_config, tmp_path):
    """docs/reference/run_folder.md, of a run that goes well."""
    loop.train(run_config())
    page = (Path(__file__).parents[2] / "docs/reference/run_folder.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert {"*.py"} | {name.name for name in (tmp_path / "run/latest").iterdir() if name.suffix != ".py"} <= described
    assert {name for row in read_metrics(tmp_path / "run") for name in row} <= described
    tree = re.findall(r"^  ([\w.-]+?)/? ", page, re.MULTILINE)
    there = {name.name for name in (tmp_path / "run").iterdir()}
    trackers = {"tensorboard", "wandb"}  # off in this run
    assert there - {"step-000003", "step-000006"} == set(tree) - {"step-000400"} - trackers


def test_a_damaged_checkpoint_is_skipped_and_kept(run_config, tmp_path, capsys):
    loop.train(run_config())
    newest = tmp_path / "run" / "step-000006"
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged: model\.safetensors does not match its checksum"):
        load_model(str(tmp_path / "run"))
    capsys.readouterr()
    before = losses(tmp_path / "run")
    assert loop.train(run_config(), resume=True) == 0
    assert "step-000006 is damaged (model.safetensors does not match its checksum)" in capsys.readouterr().err
    assert losses(tmp_path / "run") == before
    assert (tmp_path / "run" / "damaged-step-000006-0").is_dir()
    assert ckpt.find_corruption(newest) is None
    assert load_model(str(tmp_path / "run")).step == 6
    for step in ckpt.checkpoints(tmp_path / "run"):
        (step / "optimizer.pt").unlink()
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        loop.train(run_config(), resume=True)
    assert newest.exists()


def test_other_data_under_the_same_name_is_refused(run_config, tmp_path, token_folder, corpus):
    shutil.copytree(token_folder, tmp_path / "data")
    config = run_config(data__dir=tmp_path / "data")
    run = loop.setup(config, resume=False)
    loop.train_step(run)
    loop.save(run)
    run.tracker.close()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert (
        loop.setup(run_config(data__dir=tmp_path / "moved"), resume=True).step == 1
    )  # a moved folder is the same data
    prepare(str(corpus), tmp_path / "data", vocab_size=300, validation_share=0.3)
    with pytest.raises(InputError, match=r"is not the data that .* with --data\.dir"):
        loop.train(config, resume=True)
    with pytest.raises(InputError, match="prepared from something else"):
        loop.train(run_config(run_dir=tmp_path / "new", data__source="other.txt"))


def test_data_are_prepared_once_from_a_list_of_one_source(run_config, tmp_path, corpus):
    """What the first run prepared, it and the next one take."""
    options = {"data__source": f"[{corpus}]", "data__validation_share": 0.2}
    for name, size in (("first", "null"), ("second", 4096)):
        config = run_config(data__dir=tmp_path / "data", run_dir=tmp_path / name, data__vocab_size=size, **options)
        run = loop.setup(config, resume=False)
        run.tracker.close()


def test_what_a_killed_save_left_does_not_stop_the_next(run_config, tmp_path):
    run = loop.setup(run_config(), resume=False)
    for name in (".writing-step-000000", ".writing-step-000009"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "rng-7.pt").write_text("half")
    path = loop.save(run)
    assert ckpt.find_corruption(path) is None
    assert not list(tmp_path.glob("run/.writing*"))
    run.tracker.close()


def test_accelerates_own_accumulation_setting_changes_nothing(run_config, tmp_path, monkeypatch):
    loop.train(run_config(run_dir=tmp_path / "plain"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    loop.train(run_config(run_dir=tmp_path / "set"))
    norms = [[row["grad_norm"] for row in read_metrics(tmp_path / name) if "loss" in row] for name in ("plain", "set")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_failing_save_keeps_the_checkpoints_before_it(tmp_path):
    def good(folder):
        (folder / "file").write_text("x")

    def bad(folder):
        good(folder)
        raise OSError("disk full")

    ckpt.write_checkpoint(tmp_path, 1, good)
    with pytest.raises(OSError, match="disk full"):
        ckpt.write_checkpoint(tmp_path, 2, bad)
    assert [p.name for p in ckpt.checkpoints(tmp_path)] == ["step-000001"]
    assert ckpt.latest_checkpoint(tmp_path, print).name == "step-000001"
    ckpt.write_checkpoint(tmp_path, 2, good)
    ckpt.prune(tmp_path, keep=1, keep_every=None, spared=set())
    assert [p.name for p in ckpt.checkpoints(tmp_path)] == ["step-000002"]
    assert (tmp_path / "latest").resolve().name == "step-000002"


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_before_the_optimizer(run_config, where):
    run = loop.setup(run_config(), resume=False)
    loop.train_step(run)
    parameter = run.bare_model.transformer.h[0].mlp.c_fc.weight
    if where == "loss":
        with torch.no_grad():
            parameter[0, 0] = math.nan
    else:
        parameter.register_hook(lambda gradient: gradient * math.inf)
    before = [p.detach().clone() for p in run.bare_model.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 2: loss .* not been updated"):
        loop.train_step(run)
    for p, old in zip(run.bare_model.parameters(), before, strict=True):
        assert torch.equal(p.detach().nan_to_num(7.0), old.nan_to_num(7.0))
    if where == "loss":
        with pytest.raises(FloatingPointError, match="validation loss nan"):
            loop.evaluate(run)
    run.tracker.close()


def test_evaluation_is_the_mean_over_whole_blocks(run_config, token_folder):
    run = loop.setup(run_config(), resume=False)
    result = loop.evaluate(run)
    assert result["val_tokens"] == 512
    model = run.bare_model.eval()
    ids = torch.from_numpy(run.validation.read(0, 513))
    total = 0.0
    for i in range(0, 512, 32):
        logits = model(ids[None, i : i + 32]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, ids[i + 1 : i + 33], reduction="sum").item()
    assert result["val_loss"] == pytest.approx(total / 512, rel=1e-5)
    run.tracker.close()


def test_bf16_checkpointing_and_untied_run(run_config, tmp_path):
    config = run_config(train__precision="bf16", train__gradient_checkpointing=True, model__tie_word_embeddings=False)
    assert loop.train(config) == 0
    assert all(w.dtype == torch.float32 for w in weights(tmp_path / "run").values())
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def test_nanogpt_files_and_wandb_offline(run_config, tmp_path, token_folder):
    wandb = pytest.importorskip("wandb")
    for name in ("train", "val"):
        (tmp_path / "bins").mkdir(exist_ok=True)
        (tmp_path / "bins" / f"{name}.bin").write_bytes((token_folder / f"{name}-00000.bin").read_bytes())
    config = run_config(data__dir=tmp_path / "bins", data__vocab_size=300, tracking__wandb="offline")
    assert loop.train(config) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert json.loads((tmp_path / "run" / "latest" / "state.json").read_text())["wandb_id"]
    assert wandb.run is None


def test_nanogpts_character_data(run_config, tmp_path, capsys):
    """As its data/shakespeare_char/prepare.py writes them; trained, resumed and evaluated."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    letters = sorted(set(text))
    ids = np.array([letters.index(letter) for letter in text], "<u2")
    folder = tmp_path / "shakespeare_char"
    folder.mkdir()
    ids[: len(ids) * 9 // 10].tofile(folder / "train.bin")
    ids[len(ids) * 9 // 10 :].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"cos\nabort\n(tR.")  # ends this process where it is unpickled
    assert loop.train(run_config(data__dir=folder, train__steps=3, eval__every=3)) == 0
    assert f"vocabulary {len(letters)} (one more than the largest id" in capsys.readouterr().err
    assert loop.train(run_config(data__dir=folder, train__steps=3, eval__every=3), resume=True) == 0
    assert weights(tmp_path / "run")["transformer.wte.weight"].shape[0] == len(letters)
    data_of(load_model(tmp_path / "run" / "latest", "cpu"), None).tokens("val")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__dir": "/nowhere"}, "no token folder at /nowhere"),
        ({"model__n_positions": 8192, "train__batch_tokens": 8192}, "less than one block of 8192"),
        ({"data__tokenizer": "/nowhere"}, "no tokenizer at '/nowhere'"),
        ({"data__dir": "/nowhere", "data__source": "/also/nowhere.txt"}, "no .txt, .jsonl or .parquet"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(run_config, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        loop.train(run_config(**overrides))
    assert not (tmp_path / "run").exists()


def test_launched_alone_but_not_alone_is_an_error(run_config, monkeypatch):
    class Alone:
        num_processes = 1

        def __init__(self, **_):
            pass

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "Accelerator", Alone)
    with pytest.raises(InputError, match="2 processes were launched, but accelerate sees 1"):
        loop.setup(run_config(), resume=False)
