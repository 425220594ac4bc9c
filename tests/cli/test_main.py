"""The program as a whole: help, version, and how it tells of errors."""

import subprocess
import sys

import pytest
import torch
import typer

import harmonic_gpt
from harmonic_gpt.__main__ import app, main
from harmonic_gpt.cli.options import first_sentence

HEAVY = {"torch", "transformers", "accelerate", "numpy", "datasets", "matplotlib", "sklearn", "scipy"}
NOT_FOR_A_PLAN = {"datasets", "pyarrow", "matplotlib", "sklearn", "wandb", "pandas"}


def groups(command, path=()):
    """(path, group) of the program and of every group in it."""
    if hasattr(command, "commands"):
        yield path, command
        for name, inner in command.commands.items():
            yield from groups(inner, (*path, name))


GROUPS = list(groups(typer.main.get_command(app)))


@pytest.mark.parametrize(("path", "group"), GROUPS, ids=[" ".join(path) or "whole" for path, _ in GROUPS])
def test_help_names_every_verb_and_cuts_no_text(cli, monkeypatch, path, group):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = cli(*path, "--help")
    assert code == 0
    words = " ".join(out.split())
    for name, command in group.commands.items():
        assert first_sentence(command.help), name
        assert f"{name} {first_sentence(command.help)}" in words


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One thing. Another.", "One thing."),
        ("Several RUN... side\n by side. More", "Several RUN... side by side."),
        ("No stop\n\nNext paragraph.", "No stop"),
        ("Version 2.5 of it.", "Version 2.5 of it."),
    ],
)
def test_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


def test_version(cli):
    assert cli("--version") == (0, f"harmonic-gpt {harmonic_gpt.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY),
        (["--version"], HEAVY),
        (["train", "--help"], HEAVY),
        (["train", "--config", "{config}", "--dry-run"], NOT_FOR_A_PLAN),
    ],
)
def test_what_computes_nothing_loads_little(run_config, tmp_path, arguments, unwanted):
    config = tmp_path / "config.yaml"
    config.write_text(run_config().to_yaml())
    script = (
        "import sys\nfrom harmonic_gpt.__main__ import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", script, *(argument.format(config=config) for argument in arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not unwanted & set(ended.stdout.splitlines()[-1].split())


@pytest.fixture
def bad_checkpoint(tmp_path):
    """Not a checkpoint: what torch.load raises is the cause of what the program says."""
    path = tmp_path / "ckpt.pt"
    path.write_bytes(b"no pickle")
    return path


def test_an_error_is_one_line(cli, bad_checkpoint, tmp_path):
    code, out, err = cli("import", "nanogpt", bad_checkpoint, "--out", tmp_path / "out", "--standard")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {bad_checkpoint}: not a checkpoint")
    assert err.count("\n") == 1


def test_a_traceback_on_demand_has_the_cause(cli, bad_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HARMONIC_GPT_TRACEBACK", "1")
    code, _, err = cli("import", "nanogpt", bad_checkpoint, "--out", tmp_path / "out", "--standard")
    assert code == 2
    cause, effect = err.split("The above exception was the direct cause of the following exception")
    assert "UnpicklingError" in cause
    assert "InputError" in effect
    assert err.splitlines()[-1].startswith(f"error: {bad_checkpoint}")


@pytest.mark.parametrize("value", ["", "0"])
def test_the_traceback_is_off(cli, bad_checkpoint, tmp_path, monkeypatch, value):
    monkeypatch.setenv("HARMONIC_GPT_TRACEBACK", value)
    assert "Traceback" not in cli("import", "nanogpt", bad_checkpoint, "--out", tmp_path / "out", "--standard")[2]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device"), 4, "error: [Errno 28] No space left on device\n"),
        (FloatingPointError("the loss of step 3"), 3, "error: not finite: the loss of step 3\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(cli, monkeypatch, tmp_path, error, code, line):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("harmonic_gpt.interop.nanogpt.import_nanogpt", fail)
    assert cli("import", "nanogpt", "x.pt", "--out", tmp_path / "out") == (code, "", line)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), KeyError("a bug")])
def test_what_is_no_mistake_of_the_user_keeps_its_kind(monkeypatch, tmp_path, error):
    """The interpreter prints its traceback and exits with 1."""

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("harmonic_gpt.interop.nanogpt.import_nanogpt", fail)
    with pytest.raises(type(error)):
        main(["import", "nanogpt", "x.pt", "--out", str(tmp_path / "out")])
