"""`eval.py probes`: print what probes read from one model's layers, and write it down."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harmonic_gpt.cli.geometry import layer_numbers, refuse_existing
from harmonic_gpt.cli.options import quiet_transformers
from harmonic_gpt.evaluation.interpretability import chosen_layers
from harmonic_gpt.evaluation.measures.probes import run_probes
from harmonic_gpt.evaluation.tasks.probe_tasks import built_in_tasks, file_tasks, load_probe_files
from harmonic_gpt.evaluation.text import data_of, tokenizer_of
from harmonic_gpt.extras import require
from harmonic_gpt.files import write_json
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.runs.load import load_model


def run_probes_command(
    model: str,
    files: list[str] | None = None,
    layers: str | None = None,
    examples: int = 2000,
    data: str | None = None,
    out: str | None = None,
    device: str | None = None,
) -> list[dict]:
    """Probe the tasks of `files`, without any the built-in ones; print a table, write `out`. Raises InputError before
    any work."""
    require("eval", "sklearn")
    wanted = layer_numbers(layers)
    refuse_existing(out)
    load_probe_files(files or [])
    quiet_transformers()
    loaded = load_model(model, device)
    chosen, tokenizer = chosen_layers(loaded, wanted), tokenizer_of(loaded)
    print(f"evaluating {loaded.describe()}")
    if files:
        tasks = file_tasks(files, tokenizer, examples)
    else:
        known = data is not None or loaded.state is not None
        tasks = built_in_tasks(tokenizer, token_counts(data_of(loaded, data)) if known else None, examples)
    rows = run_probes(loaded, tasks, chosen)
    table = Table(
        "task", "layer", "examples", "classes", "perceptron", "logistic", "shuffled labels", "majority", box=SIMPLE_HEAD
    )
    for row in rows:
        about = (row["task"], str(row["layer"]), str(row["examples"]), str(len(row["classes"])))
        if row["flag"]:
            table.add_row(*about, row["flag"])
        else:
            scores = (
                f"{row[kind]['f1']:.3f} ± {row[kind]['sd']:.3f}" for kind in ("mlp", "logistic", "shuffled", "majority")
            )
            table.add_row(*about, *scores)
    Console(width=max(Console().width, 120)).print(table)
    print("macro F1 over five folds, ± standard deviation over folds")
    if out is not None:
        write_json(Path(out), rows)
    return rows
