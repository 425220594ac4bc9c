"""python -m harmonic_gpt VERB. `train.py` and `eval.py` are the same doors.

Exit codes: 0 done; 2 the input is wrong (one line says how to mend it); 3 the loss is not finite; 4 the system refused
(disk full, permission); 128 + n stopped by signal n after a checkpoint; 1 anything else, with a traceback.
"""

import sys
from typing import Annotated, Literal

import typer
from transformers.utils.logging import disable_progress_bar

from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import describe_fields, load_run_config

OPTIONS = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
app = typer.Typer(help="Train GPT-2 with a harmonic distance head, evaluate it, publish it.", **OPTIONS)
evaluate = typer.Typer(help="Evaluate trained models.", **OPTIONS)
app.add_typer(evaluate, name="eval")
studies = typer.Typer(help="The paper's small experiments, on two CPU cores.", **OPTIONS)
app.add_typer(studies, name="study")
importer = typer.Typer(help="Turn other programs' checkpoints into models of ours.", **OPTIONS)
app.add_typer(importer, name="import")

Model = Annotated[str, typer.Argument(help="run folder, Hugging Face folder, or hub name")]
Data = Annotated[str | None, typer.Option(help="token folder; default: the one the run was trained with")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Words = Annotated[
    str | None, typer.Option(help="list the tokens nearest to these, as in king,red; default: a few common words")
]
Task = Annotated[
    list[str] | None,
    typer.Option(help="labelled texts to probe (SST-2 or CoLA format: .csv .tsv .jsonl); may be repeated"),
]
Report = Annotated[
    str | None, typer.Option(help="folder of `eval.py compare` or `eval.py lm-eval` with this model, for the card")
]
Licence = Annotated[
    str | None, typer.Option("--license", help="licence of the weights, as the Hub names it (apache-2.0)")
]

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
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the newest checkpoint, if there is one")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop; needs no data")] = False,
):
    settings = load_run_config(config, context.args)
    from harmonic_gpt.training import loop, plan  # after the config is known to be right: torch takes seconds to load

    if dry_run:
        print(plan.dry_run(settings))
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
    validation: Annotated[
        str, typer.Option(help="content: chosen by content hash; nanogpt: the documents that nanoGPT takes")
    ] = "content",
    validation_share: Annotated[
        float | None, typer.Option(help="share of documents for validation (0.05)", min=0, max=1)
    ] = None,
    text_column: Annotated[str, typer.Option(help="column that holds the text")] = "text",
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="keep documents that are equal to an earlier one")
    ] = False,
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
        print(
            f"{path}/{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, {per_byte:.3f} tokens a byte"
        )
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
    print(
        f"nats a token   {result.nats_per_token:.4f}\nperplexity     {result.perplexity:.3f}\nbits per byte  {per_byte}"
    )
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
    texts = draw(
        loaded, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, count=count, seed=seed
    )
    for text in texts:
        print(f"---\n{text}")


@evaluate.command()
def geometry(
    model: Model,
    word_pairs: Annotated[
        str | None, typer.Option(help="folder of relation tasks (function-vectors JSON); default: built in")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="layers for word pairs, as in 0,6,12; default: first, middle, last")
    ] = None,
    protocol: Annotated[str, typer.Option(help="parallelograms: paper (equation 3), strict (ours), or both")] = "both",
    data: Data = None,
    tokens: Annotated[int, typer.Option(help="forward tokens in all; 0: the embedding matrices only", min=0)] = 32768,
    words: Words = None,
    out: Annotated[str | None, typer.Option(help="file for the numbers as JSON")] = None,
    device: Device = "cpu",
):
    """How readable one model is: word pairs, compression, class centers, analogies, nearest words."""
    from harmonic_gpt.evaluation.geometry_command import run_geometry

    run_geometry(model, word_pairs, layers, protocol, data, tokens, words, out, device)


@evaluate.command()
def probes(
    model: Model,
    task: Task = None,
    layers: Annotated[str | None, typer.Option(help="as in 0,6,12; default: first, middle, last")] = None,
    examples: Annotated[int, typer.Option(help="of a task, at most", min=25)] = 2000,
    data: Annotated[
        str | None, typer.Option(help="token folder whose frequencies are probed; default: the run's own, if any")
    ] = None,
    out: Annotated[str | None, typer.Option(help="file for the numbers as JSON")] = None,
    device: Device = "cpu",
):
    """What classifiers read from mean hidden states: labelled texts, or built-in tasks (F1, five folds)."""
    from harmonic_gpt.evaluation.probes_command import run_probes_command

    run_probes_command(model, task, layers, examples, data, out, device)


@evaluate.command()
def lens(
    model: Model,
    prompt: Annotated[str, typer.Option(help="text to read")],
    top: Annotated[int, typer.Option(help="nearest tokens of a cell", min=1)] = 3,
    out: Annotated[str | None, typer.Option(help="PNG file for a heat map")] = None,
    device: Device = "cpu",
):
    """Every layer and position of a prompt, read as its nearest tokens."""
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from harmonic_gpt.evaluation import lens as module
    from harmonic_gpt.evaluation.models import load_model

    if out is not None and Path(out).exists():
        raise InputError(f"--out {out}: exists already; choose another name")
    loaded = load_model(model, device)
    read = module.lens(loaded, prompt, top)
    table = Table("layer", *map(ascii, read.tokens), title=f"{loaded.name}: nearest by {read.by}")
    for layer in reversed(range(len(read.words))):
        cells = zip(read.words[layer], read.scores[layer], strict=True)
        table.add_row(str(layer), *("\n".join(f"{w!r} {s:.3g}" for w, s in zip(*cell, strict=True)) for cell in cells))
    Console(markup=False, width=max(Console().width, 8 + 16 * len(read.tokens))).print(
        table
    )  # words cut apart cannot be read
    if out is not None:
        module.draw(read, out, f"{loaded.name}: nearest by {read.by}")


@evaluate.command(context_settings={"ignore_unknown_options": True})
def compare(
    models: Annotated[
        list[str], typer.Argument(help="models, each its own arm; or --arm NAME MODEL... --arm NAME MODEL...")
    ],
    out: Annotated[str, typer.Option(help="folder for results.json, figures, report.md and report.html")],
    data: Data = None,
    tokens: Annotated[int, typer.Option(help="leading validation tokens to score", min=2)] = 65536,
    word_pairs: Annotated[str | None, typer.Option(help="folder of relation tasks; default: built in")] = None,
    reading_tokens: Annotated[
        int, typer.Option(help="forward tokens of the interpretability suite, a model", min=0)
    ] = 32768,
    probe_task: Task = None,
    words: Words = None,
    device: Device = "cpu",
):
    """Arms of one or more runs (seeds) side by side: eval.py compare --arm harmonic RUN... --arm standard RUN... --out
    report/"""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from harmonic_gpt.evaluation import compare as comparison
    from harmonic_gpt.evaluation.arms import parse_arms
    from harmonic_gpt.evaluation.report import first_screen, model_table, verdict

    arms = parse_arms(models)
    chosen = {"probe_files": probe_task, "words": words.split(",") if words else None}
    results = comparison.compare(
        arms, out, data, tokens, device, word_pairs=word_pairs, reading_tokens=reading_tokens, **chosen
    )
    header, rows = model_table(results)
    table = Table(*header, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(f"token frequencies alone: {results['data']['unigram_nats_per_token']:.4f} nats a token")
    print(verdict(results))
    for line in first_screen(results["comparison"]):
        print(line.replace("**", ""))
    print(f"report: {out}/report.html and .md, figures: {out}/*.png and .svg, numbers: {out}/results.json")


@studies.command()
def toy(
    out: Annotated[str, typer.Option(help="folder for the figure and claims.md")] = "runs/toy",
    seeds: Annotated[int, typer.Option(min=2)] = 20,
):
    """Points in the plane: how loss and weight norm go under harmonic loss and cross-entropy."""
    from harmonic_gpt.studies import toy as module

    module.study(out, seeds)
    print(f"{out}/claims.md, {out}/figure1_toy.png")


@studies.command()
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
):
    """Train every model of the algorithmic tasks, ablations and sweeps. `study report` draws them."""
    from harmonic_gpt.studies import algorithmic as module

    module.study(out, tasks, models, protocol, budget, seeds, workers)


@studies.command()
def digits(
    out: Annotated[str, typer.Option(help="folder for the figure and claims.md")] = "runs/digits",
    data: Annotated[
        str, typer.Option(help="digits (scikit-learn's), mnist (the hub), or a local folder of images")
    ] = "digits",
    seeds: Annotated[int, typer.Option(min=2)] = 10,
    epochs: Annotated[int | None, typer.Option(help="default: 200 for digits, 10 for MNIST", min=1)] = None,
):
    """One layer on handwritten digits: accuracy, and the weights as images beside the class means."""
    from harmonic_gpt.studies import digits as module

    module.study(out, data, seeds, epochs)
    print(f"{out}/claims.md")


@studies.command()
def report(folder: Annotated[str, typer.Argument(help="--out of `study algorithmic`")]):
    """results.jsonl, figures and claims.md of the cells that are finished."""
    from harmonic_gpt.studies.report import report as write

    print(write(folder).read_text())


@evaluate.command("lm-eval")
def lm_eval(
    model: Model,
    tasks: Annotated[
        str, typer.Option(help="comma-separated: validation_text, relations, or any of `lm_eval ls tasks`")
    ],
    data: Annotated[
        str | None, typer.Option(help="token folder or text file of validation_text; default: the run's own")
    ] = None,
    out: Annotated[str | None, typer.Option(help="folder whose results.json takes the scores")] = None,
    few_shot: Annotated[
        int | None, typer.Option(help="examples before each question; default: the task's", min=0)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="questions of a task; default: all", min=1)] = None,
    device: Device = "cpu",
):
    """EleutherAI's lm-evaluation-harness."""
    from harmonic_gpt.interop import harness

    names = [task.strip() for task in tasks.split(",") if task.strip()]
    loaded, scores = harness.evaluate(model, names, data=data, out=out, few_shot=few_shot, limit=limit, device=device)
    print(f"evaluated {loaded.describe()}")
    for task, metrics in scores.items():
        for metric, value in metrics.items():
            print(f"{task:<28}{metric:<20}{value:.4f}")
    if out:
        print(f"numbers: {out}/results.json")


@importer.callback()
def _import_group():
    """Turn other programs' checkpoints into models of ours."""


@importer.command()
def nanogpt(
    checkpoint: Annotated[str, typer.Argument(help="ckpt.pt of nanoGPT or of the paper's code")],
    out: Annotated[str, typer.Option(help="folder to create")],
    standard: Annotated[
        bool, typer.Option("--standard", help="its head is nanoGPT's own: dot products, softmax")
    ] = False,
    exponent: Annotated[float | None, typer.Option(help="its head is harmonic: exponent on the distance")] = None,
    squared_distance_exponent: Annotated[
        float | None,
        typer.Option(help="its head is harmonic: exponent on the squared distance (pow_n of the paper's code)"),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="rows of the embedding to keep; default: 50257 of 50304, or all", min=1)
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer folder or hub name to put beside the model")] = None,
):
    """A nanoGPT checkpoint."""
    from harmonic_gpt.interop import nanogpt as module

    imported = module.import_nanogpt(
        checkpoint, out, standard=standard, exponent=exponent, squared_distance_exponent=squared_distance_exponent,
        vocab_size=vocab_size, tokenizer=tokenizer,
    )  # fmt: skip
    for note in imported.notes:
        print(note)
    print(f"{imported.out}: complete")


@app.command()
def attach(
    run: Annotated[str, typer.Argument(help="run folder that was trained with tracking")],
    report: Annotated[str, typer.Option(help="folder of `eval.py compare`")],
):
    """Add a report's figures and numbers to the run's wandb, tensorboard or trackio."""
    from harmonic_gpt.training import trackers as module

    print(f"attached to {', '.join(module.attach(run, report))}")


@app.command()
def export(
    model: Model,
    out: Annotated[str, typer.Option(help="folder to create")],
    report: Report = None,
    licence: Licence = None,
    repo: Annotated[str | None, typer.Option(help="USER/NAME it will have on the Hub, for the card's example")] = None,
):
    """Write a folder to publish: weights, code, tokenizer and a model card."""
    from harmonic_gpt.interop import export as module

    path = module.export(model, out, report=report, licence=licence, repo=repo)
    print(f"{path}: complete; publish it with `python -m harmonic_gpt push {path} --repo USER/NAME`")


@app.command()
def push(
    model: Model,
    repo: Annotated[str, typer.Option(help="USER/NAME on the Hugging Face Hub")],
    private: Annotated[
        bool, typer.Option("--private", help="create a private repository; refuse an existing public one")
    ] = False,
    report: Report = None,
    licence: Licence = None,
):
    """Publish a model on the Hugging Face Hub, in one commit. The token is `hf auth login`'s, or HF_TOKEN."""
    from harmonic_gpt.interop import export as module

    print(f"published: {module.push(model, repo, private=private, report=report, licence=licence)}")


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
