"""What is written to a pipe or a file: lines, without bars, carriage returns and escape sequences."""

import os
import subprocess
import sys

import pytest

from harmonic_gpt import progress
from harmonic_gpt.progress import show_progress
from harmonic_gpt.training.loop import train

# Each verb in one process, as the first use of the libraries in it
PIPED = """
import sys
from harmonic_gpt.__main__ import main
for arguments in {commands!r}:
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, arguments
"""


def written(commands, **environment) -> str:
    arguments = [[str(word) for word in command] for command in commands]
    ended = subprocess.run(
        [sys.executable, "-c", PIPED.format(commands=arguments)],
        env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False,
    )  # fmt: skip
    text = ended.stdout.decode()
    assert ended.returncode == 0, text
    return text


def assert_plain(text: str) -> None:
    for mark in ("\r", "\x1b", "it/s", "%|"):
        assert mark not in text, text


def test_piped_commands_write_plain_lines(run_config, corpus, tmp_path):
    """What loads weights first has the libraries' bars to show: here everything does."""
    config, run, data = tmp_path / "config.yaml", tmp_path / "run", tmp_path / "data"
    config.write_text(run_config(run_dir=run, data__dir=data).to_yaml())
    text = written(
        [
            ["prepare", "--source", corpus, "--out", data, "--vocab-size", 300, "--validation-share", 0.2],
            ["inspect", data],
            ["train", "--config", config],
            ["export", run, "--out", tmp_path / "exported"],
            ["eval", "perplexity", run, "--tokens", 300],
            ["eval", "sample", run, "--max-new-tokens", 2],
            ["eval", "lens", run, "--prompt", "The"],
        ]
    )
    assert_plain(text)
    assert "step 6: validation" in text


@pytest.mark.slow
def test_piped_commands_that_take_longer(run_config, tmp_path):
    pytest.importorskip("lm_eval")
    harmonic_run, standard_run = tmp_path / "harmonic", tmp_path / "standard"
    standard = {"model__similarity": "dot", "model__normalization": "softmax"}
    assert train(run_config(run_dir=harmonic_run)) == 0
    assert train(run_config(run_dir=standard_run, **standard)) == 0
    alone = [  # each the first in its process
        ["eval", "lm-eval", harmonic_run, "--tasks", "relations", "--limit", 2],
        ["eval", "compare", harmonic_run, standard_run, "--tokens", 300, "--reading-tokens", 600,
         "--out", tmp_path / "report"],
        ["eval", "probes", harmonic_run, "--examples", 30, "--layers", 0],
        ["study", "toy", "--out", tmp_path / "toy", "--seeds", 2],
        ["study", "digits", "--out", tmp_path / "digits", "--seeds", 2, "--epochs", 1],
    ]  # fmt: skip
    for command in alone:
        assert_plain(written([command]))


@pytest.mark.slow
def test_piped_trackers(run_config, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(run_config(tracking__wandb="offline", tracking__tensorboard=True).to_yaml())
    assert_plain(written([["train", "--config", config]], WANDB_DIR=str(tmp_path)))


def test_lines_at_intervals(monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with show_progress(desc="checking", unit=" tokens", total=5000) as shown:
        for _ in range(5):  # a reading of the clock each, and one more for a line
            shown.update(1000)
    assert list(show_progress(range(3), desc="tasks")) == [0, 1, 2]
    list(show_progress(range(9), desc="hidden", quiet=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "checking: 3,000 of 5,000 tokens\ntasks: 3 of 3\n"
