"""eval: perplexity, sample, geometry, probes, lens, compare, explore, lm-eval."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harmonic_gpt.cli.options import (
    FORWARD_TOKENS,
    Data,
    Device,
    Model,
    Out,
    ProbeFiles,
    Verify,
    Words,
    quiet_transformers,
)
from harmonic_gpt.errors import InputError


def perplexity(
    model: Model,
    data: Data = None,
    split: Annotated[Literal["train", "val"], typer.Option()] = "val",
    tokens: Annotated[int | None, typer.Option(help="score so many, the first of each source", min=2)] = None,
    window: Annotated[int | None, typer.Option(help="tokens of context; default: the model's", min=1)] = None,
    stride: Annotated[int | None, typer.Option(help="targets of a window; default: half of it", min=1)] = None,
    device: Device = None,
    verify: Verify = False,
) -> None:
    """Nats per token, perplexity and bits per byte on a token folder, with strided windows."""
    from harmonic_gpt.evaluation.perplexity import perplexity as score
    from harmonic_gpt.evaluation.text import data_of
    from harmonic_gpt.runs.load import load_model

    quiet_transformers()
    loaded = load_model(model, device)
    folder = data_of(loaded, data)
    if verify and split in folder.splits:
        folder.verify(split, anew=True)
    stream = folder.leading(split, tokens) if tokens else folder.tokens(split)
    print(f"evaluating {loaded.describe()}")
    ids = stream.read(0, len(stream))
    scored = score(loaded.model, ids, tokenizer=loaded.tokenizer, window=window, stride=stride)
    per_byte = "unknown (the model has no tokenizer)" if scored.bits_per_byte is None else f"{scored.bits_per_byte:.4f}"
    print(f"nats per token  {scored.nats_per_token:.4f}")
    print(f"perplexity      {scored.perplexity:.3f}")
    print(f"bits per byte   {per_byte}")
    print(f"tokens          {scored.tokens:,} of {split}, windows of {scored.window} every {scored.stride}")


def sample(
    model: Model,
    prompt: Annotated[str, typer.Option(help="text to continue; empty: start of a document")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0 is greedy", min=0)] = 0.8,
    top_k: Annotated[int, typer.Option(min=1)] = 50,
    count: Annotated[int, typer.Option(help="number of samples", min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    device: Device = None,
) -> None:
    """Continue a prompt."""
    from harmonic_gpt.evaluation.sample import sample as draw
    from harmonic_gpt.runs.load import load_model

    quiet_transformers()
    loaded = load_model(model, device)
    print(f"sampling from {loaded.describe()}")
    texts = draw(
        loaded, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, count=count, seed=seed
    )
    for text in texts:
        print(f"---\n{text}")


def geometry(
    model: Model,
    word_pairs: Annotated[
        str | None, typer.Option(help="folder of relation tasks (function-vectors JSON); default: built in")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="layers for word pairs, as in 0,6,12; default: first, middle, last")
    ] = None,
    protocol: Annotated[
        Literal["paper", "strict", "both"],
        typer.Option(help="parallelograms: paper (equation 3), strict (ours), or both"),
    ] = "both",
    data: Data = None,
    tokens: Annotated[
        int, typer.Option(help="forward tokens in all; 0: the embedding matrices only", **FORWARD_TOKENS)
    ] = 32768,
    words: Words = None,
    out: Out = None,
    device: Device = None,
    full: Annotated[
        bool, typer.Option("--full", help="print every protocol, space and layer of the word pairs")
    ] = False,
) -> None:
    """How interpretable one model is: word pairs, compression, class centers, nearest words."""
    from harmonic_gpt.cli.geometry import run_geometry

    run_geometry(model, word_pairs, layers, protocol, data, tokens, words, out, device, full)


def probes(
    model: Model,
    task: ProbeFiles = None,
    layers: Annotated[str | None, typer.Option(help="as in 0,6,12; default: first, middle, last")] = None,
    examples: Annotated[int, typer.Option(help="of a task, at most", min=25)] = 2000,
    data: Annotated[
        str | None, typer.Option(help="token folder whose frequencies are probed; default: the run's own, if any")
    ] = None,
    out: Out = None,
    device: Device = None,
) -> None:
    """What classifiers read from mean hidden states: labelled texts, or built-in tasks (F1, five folds)."""
    from harmonic_gpt.cli.probes import run_probes_command

    run_probes_command(model, task, layers, examples, data, out, device)


def lens(
    model: Model,
    prompt: Annotated[str, typer.Option(help="text to look into")],
    top: Annotated[int, typer.Option(help="nearest tokens of a cell", min=1)] = 3,
    out: Annotated[str | None, typer.Option(help="PNG file for a heat map")] = None,
    device: Device = None,
) -> None:
    """Every layer and position of a prompt, read as its nearest tokens."""
    from rich.console import Console
    from rich.table import Table

    from harmonic_gpt.cli.geometry import refuse_existing
    from harmonic_gpt.evaluation import lens as module
    from harmonic_gpt.extras import require
    from harmonic_gpt.runs.load import load_model

    refuse_existing(out)
    if out is not None:
        require("eval", "matplotlib")  # before the work
    quiet_transformers()
    loaded = load_model(model, device)
    read = module.lens(loaded, prompt, top)
    title = f"{loaded.name}: likeliest tokens, and their {read.by}"
    table = Table("layer", *map(ascii, read.tokens), title=title)
    for layer in reversed(range(len(read.words))):
        cells = zip(read.words[layer], read.scores[layer], strict=True)
        table.add_row(str(layer), *("\n".join(f"{w!r} {s:.3g}" for w, s in zip(*cell, strict=True)) for cell in cells))
    width = max(Console().width, 8 + 16 * len(read.tokens))  # words cut apart cannot be read
    Console(markup=False, width=width).print(table)
    if out is not None:
        module.draw(read, out, title)


def compare(
    models: Annotated[
        list[str], typer.Argument(help="models, each its own arm; or --arm NAME MODEL... --arm NAME MODEL...")
    ],
    out: Annotated[str, typer.Option(help="folder for results.json, figures, report.md and report.html")],
    data: Data = None,
    tokens: Annotated[int, typer.Option(help="validation tokens to score, the first of each source", min=2)] = 65536,
    word_pairs: Annotated[str | None, typer.Option(help="folder of relation tasks; default: built in")] = None,
    reading_tokens: Annotated[
        int,
        typer.Option(
            help="forward tokens of the interpretability suite, for each model; 0: the embedding matrices only",
            **FORWARD_TOKENS,
        ),
    ] = 32768,
    probe_task: ProbeFiles = None,
    words: Words = None,
    device: Device = None,
    verify: Verify = False,
) -> None:
    """Arms of one or more runs (seeds) side by side: eval.py compare --arm harmonic RUN... --arm standard RUN... --out
    report/"""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from harmonic_gpt.evaluation.comparison import compare as comparison
    from harmonic_gpt.evaluation.comparison.arms import parse_arms
    from harmonic_gpt.evaluation.comparison.report import model_table, verdict

    quiet_transformers()
    results = comparison.compare(
        parse_arms(models),
        out,
        data,
        tokens,
        device,
        word_pairs=word_pairs,
        reading_tokens=reading_tokens,
        probe_files=probe_task or (),
        words=words.split(",") if words else None,
        verify=verify,
    )
    header, rows = model_table(results)
    table = Table(*header, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)
    print(f"token frequencies alone: {results['data']['unigram_nats_per_token']:.4f} nats per token")
    for line in verdict(results):
        print(line)
    print(f"report: {out}/report.html and .md, figures: {out}/*.png and .svg, numbers: {out}/results.json")


def explore(
    models: Annotated[list[str], typer.Argument(help="two models")],
    out: Annotated[str | None, typer.Option(help="folder for the page: open its index.html")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="serve the page on this computer; texts typed in it are read")
    ] = False,
    data: Data = None,
    text: Annotated[list[str] | None, typer.Option(help="text file to show; may be repeated")] = None,
    texts: Annotated[int, typer.Option(help="validation passages to show", min=0, max=100)] = 12,
    length: Annotated[int, typer.Option(help="tokens of a passage, at most the models' context", min=2)] = 256,
    report: Annotated[str | None, typer.Option(help="folder of `eval.py compare`, for the verdict")] = None,
    word_pairs: Annotated[str | None, typer.Option(help="folder of relation tasks; default: built in")] = None,
    umap: Annotated[bool, typer.Option(help="also draw the map that keeps neighbors together")] = True,
    host: Annotated[
        str, typer.Option(help="address of --serve; other than this, it is seen from outside")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of --serve; 0: any free one", min=0, max=65535)] = 8765,
    device: Device = None,
) -> None:
    """Two models side by side in the browser: their predictions, layers and class centers."""
    import tempfile

    from harmonic_gpt.allocator import keep_freed_memory
    from harmonic_gpt.explorer.build import PAGE, folder_bytes
    from harmonic_gpt.explorer.build import explore as build
    from harmonic_gpt.explorer.serve import is_loopback, make_server

    if out is None and not serve:
        raise InputError("expected --out FOLDER, --serve, or both")
    quiet_transformers()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="harmonic-gpt-") as temporary:
        folder = Path(out).expanduser() if out else Path(temporary) / "explorer"
        explored = build(
            models, folder, data=data, texts=texts, length=length, files=text or (), report=report,
            word_pairs=word_pairs, umap=umap, device=device,
        )  # fmt: skip
        for loaded in explored.models:
            print(f"explored {loaded.describe()}")
        for line in explored.left_out:
            print(f"left out: {line}")
        if out:
            print(f"explorer: open {folder / PAGE} ({folder_bytes(folder) / 1e6:.1f} MB)")
        if serve:
            with make_server(folder, explored, host, port) as server:
                if not is_loopback(host):
                    print(f"anyone who reaches {host} can have texts read here")
                print(f"serving http://{host}:{server.server_address[1]}/ until Ctrl-C")
                server.serve_forever()


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
    device: Device = None,
) -> None:
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
