"""Measure `uses` of a queue's kept models again, after uses.py has changed, and put it into the rows of the same runs.

    python experiments/measure_again.py KEPT... --rows docs/results/protocol.jsonl --question "enough text"

KEPT: run folders that the queue kept, named by the keys of their rows. A run that was trained once more to be kept
counts as the same one: same arm, size, seed and settings, apart from how often it was evaluated and what only looks at
it. Other rows of the question at the same size lose their `uses`, so that nothing is compared over two ways to measure.
"""

import argparse
import json
from pathlib import Path

from report import arm_of
from uses import uses

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.files import read_jsonl, write_text
from harmonic_gpt.progress import show_progress
from harmonic_gpt.runs.load import load_model


def same_run(row: dict) -> str:
    """What is trained, apart from what changes nothing in it."""
    settings = {name: value for name, value in row["set"].items() if name != "eval.every"}
    trial = {name: value for name, value in row["trial"].items() if not name.startswith("watch_")}
    return json.dumps([arm_of(row), row["size"], row["seed"], settings, trial], sort_keys=True)


def with_uses(rows: list[dict], question: str, measured: dict[str, dict]) -> list[dict]:
    """The rows with what was measured, by the key of a kept run."""
    runs = {same_run(row): measured[row["key"]] for row in rows if row["key"] in measured}
    sizes = {row["size"] for row in rows if row["key"] in measured}
    changed = []
    for row in rows:
        if row["question"] == question and row["size"] in sizes:
            row = {key: value for key, value in row.items() if key != "uses"}
            if same_run(row) in runs:
                row["uses"] = runs[same_run(row)]
        changed.append(row)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", nargs="+", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--question", required=True, help="whose rows get what is measured")
    args = parser.parse_args()
    rows = read_jsonl(args.rows)
    if unknown := {folder.name for folder in args.kept} - {row["key"] for row in rows}:
        raise InputError(f"no row has the key of {', '.join(sorted(unknown))}")
    measured = {}
    for folder in show_progress(args.kept, desc="models"):
        loaded = load_model(str(folder), "cpu")
        measured[folder.name] = uses(loaded.model, data_of(loaded, None).tokens("val"))
    write_text(args.rows, "".join(f"{json.dumps(row)}\n" for row in with_uses(rows, args.question, measured)))


if __name__ == "__main__":
    main()
