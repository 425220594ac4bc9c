"""Options that several verbs share, and the groups that hold the verbs."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class Group(TyperGroup):
    """Lists its verbs with the whole first sentence of each; click would cut it to the width of the screen."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_sentence(command.help or "")) for name, command in self.commands.items()])


def first_sentence(text: str) -> str:
    """The first sentence of a help text, on one line. Three dots end none: `compare RUN...` goes on."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.][.])\s", paragraph)[0]


def group(help_text: str, completion: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=Group,
        help=help_text,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def as_typed(parameter: str) -> str:
    """The option of a parameter."""
    if parameter == "drop_duplicates":
        return "without --keep-duplicates"
    return f"--{parameter.replace('_', '-')}"


def checked(kind: type, allowed: str, test: Callable[[Any], bool]) -> dict[str, Any]:
    """Settings of an option with values that are no closed range, which is all that click can describe: `allowed` says
    in its help and in its error what `test` accepts."""

    def parse(text: Any) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not test(value):
            raise typer.BadParameter(f"expected {allowed}, got {text!r}")
        return value

    return {"parser": parse, "metavar": allowed.replace(" ", "")}


SHARE = checked(float, "0 < x < 1", lambda x: 0 < x < 1)
POSITIVE = checked(float, "x > 0", lambda x: 0 < x < math.inf)
# Fewer tokens are not one block of text and the words' hidden states
FORWARD_TOKENS = checked(int, "0 or x >= 512", lambda x: x == 0 or x >= 512)


def quiet_transformers() -> None:
    """No bars of transformers' own, for files that load in a moment."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


Model = Annotated[str, typer.Argument(help="run folder, Hugging Face folder, or hub name")]
Data = Annotated[str | None, typer.Option(help="token folder; default: the one the run was trained with")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: cuda where there is one")]
Out = Annotated[str | None, typer.Option(help="file for the numbers as JSON")]
Words = Annotated[
    str | None, typer.Option(help="list the tokens nearest to these, as in king,red; default: a few common words")
]
ProbeFiles = Annotated[
    list[str] | None,
    typer.Option(help="labelled texts to probe (SST-2 or CoLA format: .csv .tsv .jsonl); may be repeated"),
]
Report = Annotated[
    str | None,
    typer.Option(help="folder of `eval.py compare` or `eval.py lm-eval` with this model, for the card"),
]
License = Annotated[
    str | None, typer.Option("--license", help="license of the weights, as the Hub names it (apache-2.0)")
]
Verify = Annotated[bool, typer.Option("--verify", help="read the token files anew, whatever is noted about them")]
