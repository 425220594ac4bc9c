"""What a look at the command line costs, and that no help text is cut."""

import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from harmonic_gpt import __version__
from harmonic_gpt.__main__ import app

HEAVY = {"torch", "transformers", "numpy", "accelerate", "matplotlib", "scipy", "sklearn"}  # seconds to import


def verbs(command, path=()):
    """(path, command) of the program, its groups and its verbs."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))


VERBS = dict(verbs(typer.main.get_command(app)))


def squeezed(text: str | None) -> str:
    """Without spaces: long words are broken over lines."""
    return "".join((text or "").replace("\b", "").split())


def first_sentence(text: str) -> str:
    """Ends at one dot, not at three: those of `RUN... --arm` are inside a sentence."""
    return re.split(r"(?<=[^.]\.)\s", text.split("\n\n")[0])[0]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["eval", "compare", "--help"]])
def test_a_look_at_the_command_line_imports_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harmonic_gpt", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in imported, "the list of imports was not understood"
    assert not imported & HEAVY
    assert done.stdout.startswith(f"harmonic-gpt {__version__}" if arguments == ["--version"] else "Usage:")


@pytest.mark.parametrize("columns", [80, 50])
@pytest.mark.parametrize("path", VERBS, ids=lambda path: " ".join(path) or "harmonic-gpt")
def test_help_is_whole(path, columns):
    command = VERBS[path]
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="harmonic-gpt", env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    shown = squeezed(result.output)
    assert squeezed(command.help) in shown
    for parameter in command.params:
        assert squeezed(getattr(parameter, "help", None)) in shown
    for name, inner in getattr(command, "commands", {}).items():
        assert squeezed(name + first_sentence(inner.help)) in shown
