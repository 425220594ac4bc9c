"""python -m harmonic_gpt VERB, or harmonic-gpt VERB; train.py and eval.py start the same program.

Exit codes: 0 done; 2 the input is wrong (the message says how to mend it); 3 a number is not finite or left its range;
4 the system refused (disk full, permission, network); 128 + n training was stopped by signal n, after a checkpoint; 130
also Ctrl-C elsewhere, or twice in training; 1 anything else, with a traceback.
HARMONIC_GPT_TRACEBACK=1 prints the traceback of every error.
"""

import os
import sys
import traceback
from typing import Annotated

import typer

from harmonic_gpt import __version__
from harmonic_gpt.cli import data, evaluate, publish, studies, train
from harmonic_gpt.cli.options import as_typed, group
from harmonic_gpt.errors import InputError, options_spelled

# (exit code, what the message begins with)
OUTCOMES: dict[type[Exception], tuple[int, str]] = {
    InputError: (2, ""),
    FloatingPointError: (3, "not finite: "),
    OSError: (4, ""),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"harmonic-gpt {__version__}")
        raise typer.Exit


app = group("Train GPT-2 with a harmonic distance head, evaluate it, publish it.", completion=True)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


app.command(help=train.TRAIN_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    train.train
)
app.command()(data.prepare)
app.command()(data.join)
app.command()(data.inspect)

evaluation = group("Evaluate trained models.")
evaluation.command()(evaluate.perplexity)
evaluation.command()(evaluate.sample)
evaluation.command()(evaluate.geometry)
evaluation.command()(evaluate.probes)
evaluation.command()(evaluate.lens)
evaluation.command(context_settings={"ignore_unknown_options": True})(evaluate.compare)
evaluation.command()(evaluate.explore)
evaluation.command("lm-eval")(evaluate.lm_eval)
app.add_typer(evaluation, name="eval")

app.command()(publish.export)
app.command()(publish.push)
importer = group("Turn other programs' checkpoints into models of ours.")
importer.callback()(lambda: None)  # a group, though it has one verb
importer.command()(publish.nanogpt)
app.add_typer(importer, name="import")
app.command()(train.attach)

study = group("The paper's small experiments, on two CPU cores.")
study.command()(studies.toy)
study.command()(studies.algorithmic)
study.command()(studies.digits)
study.command()(studies.report)
app.add_typer(study, name="study")


def main(arguments: list[str] | None = None) -> None:
    """Run a verb and exit; mistakes of the user become one line and exit code 2."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; tqdm reads it when it is imported
    try:
        with options_spelled(as_typed):
            app(arguments, prog_name="harmonic-gpt", standalone_mode=True)
    except tuple(OUTCOMES) as error:
        if os.environ.get("HARMONIC_GPT_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        code, prefix = next(outcome for kind, outcome in OUTCOMES.items() if isinstance(error, kind))
        print(f"error: {prefix}{error}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
