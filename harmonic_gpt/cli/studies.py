"""study: toy, algorithmic, digits, report."""

from typing import Annotated, Literal

import typer


def toy(
    out: Annotated[str, typer.Option(help="folder for the figure and claims.md")] = "runs/toy",
    seeds: Annotated[int, typer.Option(min=2)] = 20,
) -> None:
    """Points in the plane: how loss and weight norm go under harmonic loss and cross-entropy."""
    from harmonic_gpt.studies import toy as module

    module.study(out, seeds)
    print(f"{out}/claims.md, {out}/figure1_toy.png")


def algorithmic(
    out: Annotated[
        str, typer.Option(help="folder of the results; what is there is not run again")
    ] = "runs/algorithmic",
    tasks: Annotated[list[str] | None, typer.Option(help="default: all; may be repeated")] = None,
    models: Annotated[list[str] | None, typer.Option(help="default: all; may be repeated")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="clean or paper; default: both")] = None,
    seeds: Annotated[int | None, typer.Option(help="default: 5 for quick, 20 for full", min=1)] = None,
    budget: Annotated[Literal["quick", "full"], typer.Option(help="full: the paper's epochs and seeds")] = "quick",
    workers: Annotated[int, typer.Option(help="processes", min=1)] = 2,
) -> None:
    """Train every model of the algorithmic tasks, ablations and sweeps. `study report` draws them."""
    from harmonic_gpt.studies import algorithmic as module

    module.study(out, tasks, models, protocol, budget, seeds, workers)


def digits(
    out: Annotated[str, typer.Option(help="folder for the figure and claims.md")] = "runs/digits",
    data: Annotated[
        str, typer.Option(help="digits (scikit-learn's), mnist (the hub), or a local folder of images")
    ] = "digits",
    seeds: Annotated[int, typer.Option(min=2)] = 10,
    epochs: Annotated[int | None, typer.Option(help="default: 200 for digits, 10 for MNIST", min=1)] = None,
) -> None:
    """One layer on handwritten digits: accuracy, and the weights as images beside the class means."""
    from harmonic_gpt.studies import digits as module

    module.study(out, data, seeds, epochs)
    print(f"{out}/claims.md")


def report(folder: Annotated[str, typer.Argument(help="--out of `study algorithmic`")]) -> None:
    """results.jsonl, figures and claims.md of the cells that are finished."""
    from harmonic_gpt.studies.report import report as write

    print(write(folder).read_text())
