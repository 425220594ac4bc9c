"""export, push, import nanogpt."""

from typing import Annotated

import typer

from harmonic_gpt.cli.options import POSITIVE, License, Model, Report
from harmonic_gpt.errors import InputError


def export(
    model: Model,
    out: Annotated[str, typer.Option(help="folder to create")],
    report: Report = None,
    license: License = None,
    repo: Annotated[str | None, typer.Option(help="USER/NAME it will have on the Hub, for the card's example")] = None,
) -> None:
    """Write a folder to publish: weights, code, tokenizer and a model card."""
    from harmonic_gpt.interop import export as module

    path = module.export(model, out, report=report, license=license, repo=repo)
    print(f"{path}: complete; publish it with `harmonic-gpt push {path} --repo USER/NAME`")


def push(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, or hub name; or an explorer's folder")],
    repo: Annotated[str | None, typer.Option(help="USER/NAME of a model on the Hugging Face Hub")] = None,
    space: Annotated[
        str | None, typer.Option(help="USER/NAME of a static Space, for a folder of `eval.py explore`")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="create a private repository; refuse an existing public one")
    ] = False,
    report: Report = None,
    license: License = None,
) -> None:
    """Publish a model or an explorer on the Hugging Face Hub, in one commit. The token is `hf auth login`'s, or
    HF_TOKEN."""
    if (repo is None) == (space is None):
        raise InputError("expected one of --repo USER/NAME (a model) and --space USER/NAME (an explorer)")
    if space is not None:
        if report or license:
            raise InputError("--report and --license belong to a model's card; an explorer has none")
        from harmonic_gpt.explorer.publish import push_space

        print(f"published: {push_space(model, space, private=private)}")
        return
    assert repo is not None
    from harmonic_gpt.interop import export as module

    print(f"published: {module.push(model, repo, private=private, report=report, license=license)}")


def nanogpt(
    checkpoint: Annotated[str, typer.Argument(help="ckpt.pt of nanoGPT or of the paper's code")],
    out: Annotated[str, typer.Option(help="folder to create")],
    standard: Annotated[
        bool, typer.Option("--standard", help="its head is nanoGPT's own: dot products, softmax")
    ] = False,
    exponent: Annotated[
        float | None, typer.Option(help="its head is harmonic: exponent on the distance", **POSITIVE)
    ] = None,
    squared_distance_exponent: Annotated[
        float | None,
        typer.Option(
            help="its head is harmonic: exponent on the squared distance (pow_n of the paper's code)", **POSITIVE
        ),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="rows of the embedding to keep; default: 50257 of 50304, or all", min=1)
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer folder or hub name to put beside the model")] = None,
) -> None:
    """A nanoGPT checkpoint."""
    from harmonic_gpt.interop import nanogpt as module

    imported = module.import_nanogpt(
        checkpoint, out, standard=standard, exponent=exponent, squared_distance_exponent=squared_distance_exponent,
        vocab_size=vocab_size, tokenizer=tokenizer,
    )  # fmt: skip
    for note in imported.notes:
        print(note)
    print(f"{imported.out}: complete")
