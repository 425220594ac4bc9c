"""The help of a verb has the whole of its text and of each option's."""

import pytest
import typer
from typer.testing import CliRunner

from harmonic_gpt.__main__ import app


def verbs(command, path=()):
    """(path, command) of every verb; groups are walked through."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))


VERBS = dict(verbs(typer.main.get_command(app)))


def squeezed(text: str | None) -> str:
    """Without spaces: long words are broken over lines."""
    return "".join((text or "").replace("\b", "").split())


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_help_is_whole(path):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "50"})
    assert result.exit_code == 0
    assert squeezed(VERBS[path].help) in squeezed(result.output)
    for parameter in VERBS[path].params:
        assert squeezed(getattr(parameter, "help", None)) in squeezed(result.output), parameter.name
