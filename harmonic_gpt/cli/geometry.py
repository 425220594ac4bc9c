"""`eval.py geometry`: print one model's readability, and write it down."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.measure import data_of
from harmonic_gpt.evaluation.comparison.report_sections import limits, shape_line
from harmonic_gpt.evaluation.interpretability import geometry_rows, measure_interpretability
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.runs.load import load_model


def layer_numbers(text: str | None) -> list[int] | None:
    """[0, 6, 12] of "0,6,12". Raises InputError."""
    try:
        return None if text is None else [int(layer) for layer in text.split(",")]
    except ValueError:
        raise InputError(f"--layers: expected numbers such as 0,6,12, got {text!r}") from None


def run_geometry(
    model: str, word_pairs: str | None, layers: str | None, protocol: str, data: str | None, tokens: int, words: str | None,
    out: str | None, device: str,
) -> dict:  # fmt: skip
    """Measure, print tables, write `out` as JSON. Returns the numbers. Raises InputError before any work for wrong
    options."""
    if protocol not in ("paper", "strict", "both"):
        raise InputError(f"--protocol: expected paper, strict or both, got {protocol!r}")
    chosen = layer_numbers(layers)
    if out is not None and Path(out).exists():
        raise InputError(f"--out {out}: exists already; choose another name")
    tasks = load_tasks(word_pairs)
    loaded = load_model(model, device)
    print(f"evaluating {loaded.describe()}")
    text = None
    if tokens and (data is not None or loaded.state is not None):
        stream = data_of(loaded, data).tokens("val")
        text = stream.read(0, min(len(stream), tokens))
    elif tokens:
        print(
            f"{loaded.name} does not say what text it was trained on: matrices only. --data FOLDER adds layers and class centers."
        )
    row = measure_interpretability(
        loaded, tasks, text, tokens, chosen, protocol, words=words.split(",") if words else None
    ).row
    header = [
        "where",
        "task",
        "protocol",
        "space",
        "pairs",
        "single",
        "unknown",
        "used",
        "trivial",
        "loss",
        "/ shuffled [95 %]",
    ]
    table = Table(*header, "offset cosine", box=SIMPLE_HEAD)
    for r in geometry_rows(row):
        ratio = r.get("flag") or ("-" if r.get("ratio") is None else f"{r['ratio']:.3f} {limits(r['ratio_interval'])}")
        out_of = r.get("trivial_quadruples", r.get("excluded_quadruples", "-"))
        cosine = "-" if r.get("offset_cosine") is None else f"{r['offset_cosine']:.3f}"
        loss = "-" if r["loss"] is None else f"{r['loss']:.3f}"
        counts = [str(r[key]) for key in ("pairs", "single_token_pairs", "unknown", "used")]
        table.add_row(
            r["where"], r["task"], r["protocol"], str(r["components"]), *counts, str(out_of), loss, ratio, cosine
        )
    Console(width=max(Console().width, 160)).print(table)  # numbers cut off would be worse than lines that wrap
    near = row["neighbours"]
    for found in near["words"]:
        nearest = ", ".join(
            f"{word!r} {score:.3g}" for word, score in zip(found["nearest"], found["scores"], strict=True)
        )
        print(f"nearest to {found['word']!r} by {near['by']}: {nearest}")
    for name, matrix in row["matrices"].items():
        print(f"{name}: {shape_line(matrix['compression'])}")
    for flag in row["flags"]:
        print(f"FLAG {flag}")
    if found := row.get("class_centers"):
        cosine = (
            ""
            if found["flag"]
            else f"{found['cosine']:.3f} {limits(found['cosine_interval'])}, shuffled {found['shuffled_cosine']:.3f}"
        )
        print(f"class centers ({found['tokens']} tokens), cosine with mean context: {found['flag'] or cosine}")
    if out is not None:
        Path(out).write_text(json.dumps(row, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return row
