"""Measure `uses` of a queue's kept models again, after uses.py has changed, and put it into the rows of the same runs.

    python experiments/measure_again.py KEPT... --rows docs/results/protocol.jsonl --question "enough text"

KEPT: run folders that the queue kept, named by the keys of their rows. A run that was trained once more to be kept
counts as the same one: same arm, size, seed and settings, apart from how often it was evaluated and what only looks at
it. Rows that no kept model belongs to keep what they have.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", nargs="+", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--question", required=True, help="whose rows get what is measured")
    args = parser.parse_args()
    names = {row["key"]: same_run(row) for row in read_jsonl(args.rows)}
    if unknown := [str(folder) for folder in args.kept if folder.name not in names]:
        raise InputError(f"no row has the key of {', '.join(unknown)}")
    for folder in show_progress(args.kept, desc="models"):
        loaded = load_model(str(folder), "cpu")
        measured = uses(loaded.model, data_of(loaded, None).tokens("val"))
        # Read anew each time: a queue may be adding rows
        rows = [
            row | {"uses": measured} if (same_run(row), row["question"]) == (names[folder.name], args.question) else row
            for row in read_jsonl(args.rows)
        ]
        write_text(args.rows, "".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
