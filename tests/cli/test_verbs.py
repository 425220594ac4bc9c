"""What is typed, what is printed, which exit code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harmonic_gpt.run_config import fields
from harmonic_gpt.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_file(run_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(run_config().to_yaml())
    return path


def test_train_resume_evaluate_sample_compare(cli, config_file, tmp_path):
    run = tmp_path / "run"
    code, _, err = cli("train", "--config", config_file)
    assert code == 0
    assert "parameters:" in err
    assert "step 6: validation" in err
    assert cli("train", "--config", config_file)[0] == 2
    assert cli("train", "--config", config_file, "--resume")[0] == 0
    code, out, _ = cli("eval", "perplexity", run, "--tokens", 500)
    assert code == 0
    for expected in ("nats per token", "bits per byte", "499 of val, windows of 32 every 16", "step 6, weights sha256"):
        assert expected in out
    code, out, _ = cli("eval", "sample", run, "--prompt", "The cat", "--max-new-tokens", 5)
    assert (code, "---\nThe cat" in out) == (0, True)
    code, out, _ = cli("eval", "compare", run, "--out", tmp_path / "report", "--reading-tokens", 1000)
    assert code == 0
    assert "harmonic" in out
    assert (tmp_path / "report" / "report.md").exists()


def test_prepare(cli, corpus, tmp_path):
    sizes = ("--vocab-size", 300, "--validation-share", 0.2)
    arguments = ("prepare", "--source", corpus, "--out", tmp_path / "out", *sizes)
    code, out, _ = cli(*arguments)
    assert (code, "vocabulary 300" in out) == (0, True)
    code, _, err = cli(*arguments)
    assert code == 2
    assert err.startswith("error: ")


def test_train_prepares_missing_data(cli, config_file, corpus, tmp_path):
    arguments = [
        f"--data.dir={tmp_path / 'new'}",
        f"--data.source={corpus}",
        "--data.vocab_size=300",
        "--data.validation_share=0.2",
    ]
    assert cli("train", "--config", config_file, *arguments)[0] == 0
    assert (tmp_path / "new" / "manifest.json").exists()


def test_verify_reads_what_a_note_vouches_for(cli, config_file, token_folder, tmp_path):
    """A flipped byte in a file that has kept its time: the one damage that a note hides."""
    copy = tmp_path / "tokens"
    shutil.copytree(token_folder, copy)
    assert cli("train", "--config", config_file, f"--data.dir={copy}", f"--run_dir={tmp_path / 'a'}")[0] == 0
    file = copy / "train-00000.bin"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    arguments = ("train", "--config", config_file, f"--data.dir={copy}", f"--run_dir={tmp_path / 'b'}")
    code, _, err = cli(*arguments, "--verify")
    assert code == 2
    assert "train-00000.bin: its SHA-256 is not the manifest's" in err
    assert cli(*arguments)[0] == 0


def test_inspect(cli, token_folder, tmp_path):
    code, out, _ = cli("inspect", token_folder, "--samples", 1)
    assert code == 0
    assert "train: 'Story " in out
    copy = tmp_path / "tokens"
    shutil.copytree(token_folder, copy)
    (copy / "val-00000.bin").write_bytes(bytes((copy / "val-00000.bin").stat().st_size))
    code, _, err = cli("inspect", copy)
    assert code == 2
    assert "the files are not as they were written" in err


def test_dry_run_writes_nothing(cli, config_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out, _ = cli("train", "--config", config_file, "--dry-run", "--train.steps=1000")
    assert code == 0
    assert "1,000 steps x 256 tokens = 256,000 tokens" in out
    assert sorted(tmp_path.iterdir()) == before


def test_help_lists_every_setting(cli):
    code, out, _ = cli("train", "--help")
    assert code == 0
    for path, _field in fields():
        assert f"--{path}=" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", "{config}", "--train.step=3"], "did you mean train.steps?"),
        (["train", "--config", "{config}", "--run_dir={tmp}/x", "--data.dir={tmp}/y"], "no token folder"),
        (["train", "--train.steps=3"], "--config quickstart_harmonic"),
        (["eval", "perplexity", "{tmp}/none"], "no model at"),
        (["eval", "compare", "{tmp}", "--out", "{tmp}/r"], "no config.json and no checkpoint"),
        (["prepare", "--source", "{tmp}/none.txt", "--out", "{tmp}/d"], "no .txt"),
    ],
)
def test_mistakes_are_one_message_and_code_2(cli, config_file, tmp_path, arguments, message):
    code, _, err = cli(*(a.format(tmp=tmp_path, config=config_file) for a in arguments))
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [config_file]


def test_not_finite_is_code_3(cli, config_file):
    code, _, err = cli(
        "train", "--config", config_file, "--optim.lr=1e30", "--optim.warmup_steps=0", "--train.steps=20"
    )
    assert code == 3
    assert "step " in err
    assert "not been updated" in err


@pytest.mark.slow
def test_two_processes_see_the_same_tokens_and_get_the_same_losses(config_file, tmp_path):
    """torchrun with two gloo ranks, two micro-batches each, against one process; then one process continues what two
    began."""
    command = [str(ROOT / "train.py"), "--config", str(config_file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*parts):
        done = subprocess.run([*parts], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    rendezvous = ["--master_port=0", "--rdzv_endpoint=localhost:0", "--rdzv_backend=c10d"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *rendezvous]
    text = start(*torchrun, *command, f"--run_dir={tmp_path / 'two'}", "--train.micro_batch_size=2")
    assert "= 2 ranks x 2 micro-batches" in text
    start(sys.executable, *command, f"--run_dir={tmp_path / 'one'}")
    one, two = (list(read_metrics(tmp_path / name)) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for key in {"loss", "val_loss", "grad_norm"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=1e-5)
    shutil.rmtree(tmp_path / "two" / "step-000006")
    start(sys.executable, *command, f"--run_dir={tmp_path / 'two'}", "--resume")
    again = read_metrics(tmp_path / "two")
    assert [row["step"] for row in again] == [row["step"] for row in one]
    assert again[-1]["val_loss"] == pytest.approx(one[-1]["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_compiled_trunk_trains_and_saves_plain_names(config_file, tmp_path):
    from safetensors import safe_open

    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--config", config_file, "--train.compile=true", "--train.steps=4"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / "run" / "latest" / "model.safetensors", "pt") as file:
        names = file.keys()
    assert not [name for name in names if "_orig_mod" in name]
