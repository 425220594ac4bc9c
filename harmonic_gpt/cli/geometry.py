"""`eval.py geometry`: print how interpretable one model is, and write it down."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harmonic_gpt.cli.options import quiet_transformers
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.report import limits, mean_ratio, number
from harmonic_gpt.evaluation.interpretability import geometry_rows, measure_interpretability
from harmonic_gpt.evaluation.measures.geometry import WITHOUT_FIRST
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.files import write_json
from harmonic_gpt.runs.load import load_model

SHAPE = {  # column -> key of compression(), format
    "components for 90 %": ("components_for_90_percent", ""),
    "effective rank": ("effective_rank", ".1f"),
    "participation ratio": ("participation_ratio", ".1f"),
    "mean cosine": ("mean_cosine", ".3f"),
}


def layer_numbers(text: str | None) -> list[int] | None:
    """[0, 6, 12] of "0,6,12". Raises InputError."""
    try:
        return None if text is None else [int(layer) for layer in text.split(",")]
    except ValueError as error:
        raise InputError(f"--layers: expected numbers such as 0,6,12, got {text!r}") from error


def refuse_existing(out: str | None) -> None:
    """Raises InputError if --out would overwrite something, or its folder is not there."""
    if out is not None and Path(out).exists():
        raise InputError(f"--out {out}: exists already; choose another name")
    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {Path(out).parent}; make it first")


def run_geometry(
    model: str,
    word_pairs: str | None = None,
    layers: str | None = None,
    protocol: str = "both",
    data: str | None = None,
    tokens: int = 32768,
    words: str | None = None,
    out: str | None = None,
    device: str | None = None,
    full: bool = False,
) -> dict:
    """Measure, print tables (`full`: every row of every space), write `out` as JSON. Returns the numbers. Raises
    InputError before any work for wrong options."""
    if protocol not in ("paper", "strict", "both"):
        raise InputError(f"--protocol: expected paper, strict or both, got {protocol!r}")
    chosen = layer_numbers(layers)
    refuse_existing(out)
    tasks = load_tasks(word_pairs)
    quiet_transformers()
    loaded = load_model(model, device)
    print(f"evaluating {loaded.describe()}")
    text = None
    if tokens and (data is not None or loaded.state is not None):
        stream = data_of(loaded, data).leading("val", tokens)
        text = stream.read(0, len(stream))
    elif tokens:
        print(f"{loaded.name} does not say what text it was trained on: only its matrices are measured.")
        print("--data FOLDER adds its layers and class centers.")
    asked = words.split(",") if words else None
    row = measure_interpretability(loaded, tasks, text, tokens, chosen, protocol, words=asked).row
    if full:
        print_all_tasks(row)
    else:
        print_tasks(row, protocol)
    print_shapes(row)
    print_rest(row)
    if out is not None:
        write_json(Path(out), row)
    return row


def _table(*header: str, title: str | None = None) -> Table:
    """The first column on the left, numbers on the right."""
    table = Table(*header, title=title, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _print(table: Table, width: int) -> None:
    Console(width=max(Console().width, width)).print(table)  # numbers cut off would be worse than lines that wrap


def print_tasks(row: dict, protocol: str) -> None:
    """A table of each matrix, a row a task: the strict protocol without the first component, or the paper's alone."""
    what, *header = ("strict protocol, without the first component", "loss / shuffled [95 %]", "offset cosine [95 %]")
    if protocol == "paper":
        what, *header = ("paper's protocol", "loss", "loss of shuffled pairs")
    for name, matrix in row["matrices"].items():
        table = _table("task", "used pairs", *header, title=f"{name}: {what}")
        for r in matrix["tasks"]:
            if protocol == "paper":
                cells = [number(r["loss"], ".3f"), number(r.get("shuffled_loss"), ".3f")]
            elif r["components"] == WITHOUT_FIRST:
                cosine = f"{number(r.get('offset_cosine'), '.3f')} {limits(r.get('offset_cosine_interval'))}"
                cells = [_ratio(r), cosine]
            else:
                continue
            table.add_row(r["task"], str(r["used"]), *cells)
        _print(table, 100)


def print_all_tasks(row: dict) -> None:
    """One table of every matrix and layer, task, protocol and space."""
    header = ["where", "task", "protocol", "space", "pairs", "single", "unknown", "used", "trivial", "loss"]
    table = Table(*header, "/ shuffled [95 %]", "offset cosine", box=SIMPLE_HEAD)
    for r in geometry_rows(row):
        counts = [str(r[key]) for key in ("pairs", "single_token_pairs", "unknown", "used")]
        left_out = str(r.get("trivial_quadruples", r.get("excluded_quadruples", "-")))
        numbers = [number(r["loss"], ".3f"), _ratio(r), number(r.get("offset_cosine"), ".3f")]
        table.add_row(r["where"], r["task"], r["protocol"], str(r["components"]), *counts, left_out, *numbers)
    _print(table, 160)


def _ratio(row: dict) -> str:
    return row.get("flag") or f"{number(row.get('ratio'), '.3f')} {limits(row.get('ratio_interval'))}"


def print_shapes(row: dict) -> None:
    """A table with a row for each matrix and layer: how many dimensions it lives in; "-" for a collapsed one."""
    table = _table("", *SHAPE, "loss / shuffled", title="compression, and parallelograms in the full space")
    places = row["matrices"] | {f"layer {place['layer']}": place for place in row.get("layers", ())}
    for name, place in places.items():
        cells = [number(place["compression"][key], form) for key, form in SHAPE.values()]
        table.add_row(name, *cells, number(mean_ratio(place), ".3f"))
    _print(table, 100)


def print_rest(row: dict) -> None:
    """Nearest words, flags and class centers, a line each."""
    near = row["neighbors"]
    for line in near["words"]:
        nearest = zip(line["nearest"], line["scores"], strict=True)
        listed = ", ".join(f"{word!r} {score:.3g}" for word, score in nearest)
        print(f"nearest to {line['word']!r} by {near['by']}: {listed}")
    for flag in row["flags"]:
        print(f"FLAG {flag}")
    if centers := row.get("class_centers"):
        interval = limits(centers.get("cosine_interval"))
        cosine = centers["flag"] or f"{centers['cosine']:.3f} {interval}, shuffled {centers['shuffled_cosine']:.3f}"
        print(f"class centers ({centers['tokens']} tokens), cosine with mean context: {cosine}")
