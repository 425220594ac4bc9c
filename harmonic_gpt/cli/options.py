"""Options that several verbs share, and the groups that hold the verbs."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class Group(TyperGroup):
    """Lists its verbs with the whole first sentence of each; click would cut it to the width of the screen."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(help_text: str, completion: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=Group,
        help=help_text,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


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
