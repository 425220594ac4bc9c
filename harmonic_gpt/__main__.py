"""python -m harmonic_gpt VERB. `train.py` and `eval.py` are the same doors.

Exit codes: 0 done; 2 the input is wrong (one line says how to mend it); 3 the loss is not finite; 4 the system refused (disk full,
permission); 128 + n stopped by signal n after a checkpoint; 1 anything else, with a traceback.
"""

import sys
from typing import Annotated

import typer
from transformers.utils.logging import disable_progress_bar

from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import describe_fields, load_run_config

OPTIONS = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(help="Train GPT-2 with a harmonic distance head, evaluate it, publish it.", **OPTIONS)
evaluate = typer.Typer(help="Evaluate trained models.", **OPTIONS)
app.add_typer(evaluate, name="eval")

Model = Annotated[str, typer.Argument(help="run folder, Hugging Face folder, or hub name")]
Data = Annotated[str | None, typer.Option(help="token folder; default: the one the run was trained with")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]

TRAIN_HELP = f"""Train a model, or continue one.

Settings come from the YAML file of --config; --section.key=value overrides one. With accelerate or torchrun this trains on several
processes. Ctrl-C finishes the step, writes a checkpoint and leaves; --resume continues.

\b
Settings and their defaults:
{describe_fields()}
"""


@app.command(help=TRAIN_HELP, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[str | None, typer.Option(help="YAML file with the settings")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the newest checkpoint, if there is one")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop; needs no data")] = False,
):
    settings = load_run_config(config, context.args)
    from harmonic_gpt.training import loop  # after the config is known to be right: torch takes seconds to load

    if dry_run:
        print(loop.dry_run(settings))
        return
    raise typer.Exit(loop.train(settings, resume))


@app.command()
def prepare(
    source: Annotated[
        list[str],
        typer.Option(
            help='"pydocs", files or globs (.txt .jsonl .parquet, .gz .zst), or a hub dataset such as openwebtext; '
            "PLACE[,name=..][,config=..][,split=..][,column=..][,revision=..]; may be given several times"
        ),
    ],
    out: Annotated[str, typer.Option(help="token folder to create; a killed preparation of it is continued")],
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer folder or hub name; default: train a BPE")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="size of the BPE to train (4096)", min=257)] = None,
    validation: Annotated[str, typer.Option(help="content: chosen by content hash; nanogpt: the documents that nanoGPT takes")] = "content",
    validation_share: Annotated[float | None, typer.Option(help="share of documents for validation (0.05)", min=0, max=1)] = None,
    text_column: Annotated[str, typer.Option(help="column that holds the text")] = "text",
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="keep documents that are equal to an earlier one")] = False,
    shard_tokens: Annotated[int, typer.Option(help="tokens of a file", min=1)] = 100_000_000,
    num_workers: Annotated[int | None, typer.Option(help="threads that tokenise; default: the cores", min=1)] = None,
):
    """Turn documents into token files for training."""
    from harmonic_gpt.data import prepare as module
    from harmonic_gpt.data.tokens import open_token_folder

    path = module.prepare(
        source,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        validation=validation,
        validation_share=validation_share,
        text_column=text_column,
        drop_duplicates=not keep_duplicates,
        shard_tokens=shard_tokens,
        num_workers=num_workers,
    )
    manifest = open_token_folder(path).manifest
    for name, split in manifest["splits"].items():
        per_byte = split["tokens"] / split["text_bytes"]
        print(f"{path}/{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, {per_byte:.3f} tokens a byte")
    print(f"vocabulary {manifest['vocab_size']:,}, {manifest['duplicates']:,} duplicates dropped")


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="token folder")],
    samples: Annotated[int, typer.Option(help="documents of each split to show the start of", min=0)] = 3,
    tokenizer: Annotated[str | None, typer.Option(help="to decode with; default: the one in the folder")] = None,
):
    """What a token folder holds; verifies its checksums."""
    from harmonic_gpt.data.inspect import describe, inspect_folder

    inspection = inspect_folder(folder, samples, tokenizer)
    describe(inspection)
    if inspection.problems:
        raise InputError("the files are not as they were written:\n  " + "\n  ".join(inspection.problems))


@evaluate.command()
def perplexity(
    model: Model,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train or val")] = "val",
    tokens: Annotated[int | None, typer.Option(help="score only this many leading tokens", min=2)] = None,
    window: Annotated[int | None, typer.Option(help="tokens of context; default: the model's", min=1)] = None,
    stride: Annotated[int | None, typer.Option(help="targets of a window; default: half of it", min=1)] = None,
    device: Device = "cpu",
):
    """Nats a token, perplexity and bits per byte on a token folder, with strided windows."""
    from harmonic_gpt.evaluation import compare as comparison
    from harmonic_gpt.evaluation.models import load_model
    from harmonic_gpt.evaluation.perplexity import perplexity as score

    loaded = load_model(model, device)
    stream = comparison.data_of(loaded, data).tokens(split)
    print(f"evaluating {loaded.describe()}")
    ids = stream.read(0, min(len(stream), tokens or len(stream)))
    result = score(loaded.model, ids, tokenizer=loaded.tokenizer, window=window, stride=stride)
    per_byte = "unknown (the model has no tokenizer)" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
    print(f"nats a token   {result.nats_per_token:.4f}\nperplexity     {result.perplexity:.3f}\nbits per byte  {per_byte}")
    print(f"tokens         {result.tokens:,} of {split}, windows of {result.window} every {result.stride}")


@evaluate.command()
def sample(
    model: Model,
    prompt: Annotated[str, typer.Option(help="text to continue; empty: start of a document")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0 is greedy", min=0)] = 0.8,
    top_k: Annotated[int, typer.Option(min=1)] = 50,
    count: Annotated[int, typer.Option(help="number of samples", min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    device: Device = "cpu",
):
    """Continue a prompt."""
    from harmonic_gpt.evaluation.models import load_model
    from harmonic_gpt.evaluation.sample import sample as draw

    loaded = load_model(model, device)
    print(f"sampling from {loaded.describe()}")
    texts = draw(loaded, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, count=count, seed=seed)
    for text in texts:
        print(f"---\n{text}")


@evaluate.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="run folders, Hugging Face folders, or hub names")],
    out: Annotated[str, typer.Option(help="folder for results.json, figures and report.md")],
    data: Data = None,
    tokens: Annotated[int, typer.Option(help="leading validation tokens to score", min=2)] = 65536,
    device: Device = "cpu",
):
    """Several models side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from harmonic_gpt.evaluation import compare as comparison

    results = comparison.compare(models, out, data, tokens, device)
    header, rows = comparison.table(results)
    table = Table(*header, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(f"token frequencies alone: {results['data']['unigram_nats_per_token']:.4f} nats a token")
    print(comparison.verdict(results))
    print(f"report: {out}/report.md, figures: {out}/*.png, numbers: {out}/results.json")


def main(arguments: list[str] | None = None) -> None:
    """Run a verb and exit; mistakes of the user become one line and exit code 2."""
    disable_progress_bar()  # transformers' own, for files that load in a moment
    try:
        app(arguments, prog_name="harmonic_gpt", standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: not finite: {error}", file=sys.stderr)
        sys.exit(3)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(4)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
