"""train, attach."""

from typing import Annotated

import typer

from harmonic_gpt.cli.configs import find_config, shipped_configs
from harmonic_gpt.cli.options import Verify, quiet_transformers
from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import describe_fields, load_run_config

TRAIN_HELP = f"""Train a model, or continue one.

Settings come from --config, a YAML file or the name of one that comes with the program; --section.key=value overrides
one. With accelerate or torchrun this trains on several processes. Ctrl-C finishes the step, writes a checkpoint and
leaves, a second one leaves at once; --resume continues.

\b
Settings and their defaults:
{describe_fields()}
"""
NO_CONFIG = """--config is missing: the defaults alone are nobody's recipe. Start from one of ours, such as
  harmonic-gpt train --config quickstart_harmonic       minutes on two CPU cores
  harmonic-gpt train --config gpt2_small_harmonic       GPT-2 small, on GPUs
and change it with --section.key=value"""


def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            help=f"YAML file with the settings, or the name of one of ours: {', '.join(shipped_configs())}",
            autocompletion=lambda: list(shipped_configs()),
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the newest checkpoint, if there is one")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop; needs no data")] = False,
    verify: Verify = False,
) -> None:
    if config is None:
        raise InputError(NO_CONFIG)
    settings = load_run_config(find_config(config), context.args)
    if dry_run:
        from harmonic_gpt.training import plan

        print(plan.dry_run(settings))
        return
    from harmonic_gpt.training import loop  # after the config is known to be right: torch takes seconds to load

    quiet_transformers()
    raise typer.Exit(loop.train(settings, resume, verify))


def attach(
    run: Annotated[str, typer.Argument(help="run folder that was trained with tracking")],
    report: Annotated[str, typer.Option(help="folder of `eval.py compare`")],
) -> None:
    """Add a report's figures and numbers to the run's wandb, tensorboard or trackio."""
    from harmonic_gpt.training import trackers

    print(f"attached to {', '.join(trackers.attach(run, report))}")
