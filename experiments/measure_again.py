"""Measure a queue's kept models again, after uses.py or rare_tokens.py has changed, and put it into their runs' rows.

    python experiments/measure_again.py KEPT... --rows docs/results/protocol.jsonl --question "enough text"

KEPT: run folders that the queue kept, named by the keys of their rows. A run that was trained once more to be kept
counts as the same one: same arm, size, seed and settings, apart from how often it was evaluated and what only looks at
it. Other rows of the question at the same size lose what is measured, so that nothing is compared over two ways to
measure.
"""

import argparse
import json
from pathlib import Path

from rare_tokens import rare_words
from report import arm_of
from uses import uses

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.files import read_jsonl, write_text
from harmonic_gpt.progress import show_progress
from harmonic_gpt.runs.load import LoadedModel, load_model

UNUSED_FROM = 65536  # no setting was chosen on the validation text from here on


def same_run(row: dict) -> str:
    """What is trained, apart from what changes nothing in it."""
    settings = {name: value for name, value in row["set"].items() if name != "eval.every"}
    trial = {name: value for name, value in row["trial"].items() if not name.startswith("watch_")}
    return json.dumps([arm_of(row), row["size"], row["seed"], settings, trial], sort_keys=True)


def with_measured(rows: list[dict], question: str, measured: dict[str, dict]) -> list[dict]:
    """The rows with what was measured of each kept run, by its key: names of MEASURES to values."""
    runs = {same_run(row): measured[row["key"]] for row in rows if row["key"] in measured}
    sizes = {row["size"] for row in rows if row["key"] in measured}
    names = {name for values in measured.values() for name in values}
    changed = []
    for row in rows:
        if row["question"] == question and row["size"] in sizes:
            found = runs.get(same_run(row), {})
            row = {name: value for name, value in row.items() if name not in names}
            row["measured"] = {name: value for name, value in row.get("measured", {}).items() if name not in names}
            for name, value in found.items():  # `uses` has a place of its own in a row
                (row if name == "uses" else row["measured"])[name] = value
        changed.append(row)
    return changed


def _uses(loaded: LoadedModel) -> dict:
    return uses(loaded.model, data_of(loaded, None).tokens("val"))


def _rare(loaded: LoadedModel) -> dict:
    return rare_words(loaded.model, data_of(loaded, None), UNUSED_FROM, loaded.model.config.n_positions)


MEASURES = {"uses": _uses, "rare": _rare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", nargs="+", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--question", required=True, help="whose rows get what is measured")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES), help="default: all")
    args = parser.parse_args()
    rows = read_jsonl(args.rows)
    if unknown := {folder.name for folder in args.kept} - {row["key"] for row in rows}:
        raise InputError(f"no row has the key of {', '.join(sorted(unknown))}")
    measured = {}
    for folder in show_progress(args.kept, desc="models"):
        loaded = load_model(str(folder), "cpu")
        measured[folder.name] = {name: MEASURES[name](loaded) for name in args.measure}
    rows = with_measured(read_jsonl(args.rows), args.question, measured)
    write_text(args.rows, "".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
