"""`eval.py probes`: print what probes read from one model's layers, and write it down."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.measure import data_of
from harmonic_gpt.cli.geometry import layer_numbers
from harmonic_gpt.evaluation.interpretability import chosen_layers
from harmonic_gpt.evaluation.measures.probes import run_probes
from harmonic_gpt.evaluation.tasks.probe_tasks import built_in_tasks, file_task, load_probe_file
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.runs.load import load_model


def run_probes_command(
    model: str,
    files: list[str] | None,
    layers: str | None,
    examples: int,
    data: str | None,
    out: str | None,
    device: str,
) -> list[dict]:
    """Probe the tasks of `files`, without any the built-in ones; print a table, write `out`. Raises InputError before
    any work."""
    wanted = layer_numbers(layers)
    if out is not None and Path(out).exists():
        raise InputError(f"--out {out}: exists already; choose another name")
    for path in files or []:
        load_probe_file(path)
    loaded = load_model(model, device)
    chosen = chosen_layers(loaded, wanted)
    print(f"evaluating {loaded.describe()}")
    if files:
        tasks = [file_task(path, loaded.tokenizer, examples) for path in files]
    else:
        counts = (
            token_counts(data_of(loaded, data).tokens("train"))
            if data is not None or loaded.state is not None
            else None
        )
        tasks = built_in_tasks(loaded.tokenizer, counts, examples)
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
        Path(out).write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return rows
