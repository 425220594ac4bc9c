"""Tables of what run_queue.py measured.

    python experiments/report.py docs/results/recipe.jsonl
    python experiments/report.py docs/results/recipe.jsonl --match "2x128 .*muon"

First every setting, with its seeds side by side. Then every arm against the standard head, for every question that both
have answered with several seeds.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from harmonic_gpt.evaluation.measures.bootstrap import paired_interval
from harmonic_gpt.files import read_jsonl


def own_settings(row: dict) -> tuple[dict, dict]:
    """The settings and trials of a row beyond its size and head, under today's names: equal for equal training.

    Muon, the rate of the head and label smoothing were trials before they were settings. Without weight decay, which
    the trials did not know, they trained the same to the last bit. A corpus is named by its folder, wherever that lies.
    """
    chosen, trial = dict(row["set"]), dict(row["trial"])
    if "data.dir" in chosen:
        chosen["data.dir"] = Path(chosen["data.dir"]).name
    if "optim.weight_decay" not in chosen and trial.get("muon", 1.0) == 1.0:
        if "head_lr" in trial:
            chosen["optim.head_lr_scale"] = trial.pop("head_lr")
        if trial.pop("muon", None):
            chosen["optim.optimizer"] = "muon"
    if "label_smoothing" in trial:
        chosen["train.label_smoothing"] = trial.pop("label_smoothing")
    return chosen, trial


def settings_of(row: dict) -> str:
    """The settings of a row in one short text, without size, head and seed."""
    chosen, trial = own_settings(row)
    parts = [f"{name.split('.')[-1]} {json.dumps(value)}" for name, value in sorted((chosen | trial).items())]
    return ", ".join(parts) or "base"


def by_setting(rows: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """(size, head, settings) -> rows of its seeds, in order of seed."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault((row["size"], row["head"], settings_of(row)), []).append(row)
    return groups


def spread(values: list[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    return f"{mean(values):.4f}" + (f" +- {stdev(values):.4f}" if len(values) > 1 else "")


COLUMNS = (
    "settings",
    "seeds",
    "validation nats per token",
    "largest rise",
    "spikes",
    "gradient norm, median (max)",
    "clipped",
    "center norm",
    "measured",
)


def table(rows: list[dict]) -> str:
    """Markdown: one line per setting, best first."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    best_first = sorted(by_setting(rows).items(), key=lambda item: mean(row["val_loss"] for row in item[1]))
    for (_, _, settings), runs in best_first:
        calm = [run["training"] for run in runs]
        cells = [
            settings,
            ",".join(str(run["seed"]) for run in runs),
            spread([run["val_loss"] for run in runs]),
            f"{max(c['largest_rise'] for c in calm):.2f}",
            str(sum(c["spikes"] for c in calm)),
            f"{mean(c['grad_norm_median'] for c in calm):.2f} ({max(c['grad_norm_max'] for c in calm):.2f})",
            f"{mean(c['clipped_share'] for c in calm):.0%}",
            f"{mean(run['center_norms'][-1][1] for run in runs):.2f}",
            "; ".join(f"{k} {v:.3g}" for run in runs for k, v in run["measured"].items() if isinstance(v, int | float)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arm_of(row: dict) -> str:
    """The arm of a row; older rows have a head alone."""
    return row.get("arm", row["head"])


def loss_of(row: dict) -> float:
    return row["val_loss"]


SeedPairs = list[tuple[int, float, float]]  # (seed, ours, the baseline's)
Pairs = dict[tuple[str, str, str], SeedPairs]


def number_at(row: dict, path: str) -> float | None:
    """The number at a dotted path of a row; None where it was not measured. `inner`: of a list by layer the mean of all
    but the embeddings."""
    found: Any = row
    for part in path.split("."):
        try:
            found = mean(found[1:]) if part == "inner" else found[int(part) if isinstance(found, list) else part]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def paired(rows: list[dict], value: Callable[[dict], float | None] = loss_of, baseline: str = "standard") -> Pairs:
    """(question, size and corpus, arm) -> (seed, the arm's value, the baseline's) for every seed that both have.

    Of an arm's settings it is the one with the most seeds, and the best of these by loss.
    """
    arms: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        corpus = f" {Path(row['set']['data.dir']).name}" if "data.dir" in row["set"] else ""
        groups.setdefault((row["question"], row["size"] + corpus, arm_of(row)), []).append(row)
    for (question, size, arm), found in groups.items():
        runs = min(by_setting(found).values(), key=lambda runs: (-len(runs), mean(row["val_loss"] for row in runs)))
        values = {run["seed"]: v for run in runs if (v := value(run)) is not None}
        arms.setdefault((question, size), {})[arm] = values
    pairs: Pairs = {}
    for (question, size), values in arms.items():
        theirs = values.pop(baseline, {})
        for arm, ours in values.items():
            if seeds := sorted(ours.keys() & theirs.keys()):
                pairs[question, size, arm] = [(seed, ours[seed], theirs[seed]) for seed in seeds]
    return pairs


def interval(pairs: SeedPairs) -> list[float] | None:
    """95 % of the mean difference, by a paired t test over seeds; None with a single pair."""
    return paired_interval([ours for _, ours, _ in pairs], [theirs for _, _, theirs in pairs])


def difference(pairs: SeedPairs) -> str:
    """Mean difference with its 95 % interval, where there are several seeds; four decimals where three say little."""
    limits = interval(pairs) or []
    numbers = [mean(ours - theirs for _, ours, theirs in pairs), *limits]
    digits = 4 if limits and max(map(abs, numbers)) < 0.002 else 3
    gap, *ends = (f"{number:+.{digits}f}" for number in numbers)
    return f"{gap} [{', '.join(ends)}]" if ends else gap


def markdown_table(header: str, lines: Iterable[Iterable[str]]) -> str:
    """header: names of the columns with " | " between."""
    head = f"| {header} |"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *("| " + " | ".join(line) + " |" for line in lines)])


def arms_compared(rows: list[dict]) -> str:
    """Markdown: one line per question, size and arm with two or more seeds of it and of the standard head. A pair has
    one order of the data."""
    lines = ["| question | size | seeds | arm | | standard | arm - standard | interval |", "|---" * 8 + "|"]
    for (question, size, arm), pairs in paired(rows).items():
        seeds, ours, theirs = zip(*pairs, strict=True)
        if (limits := interval(pairs)) is not None:
            cells = [question, size, ",".join(map(str, seeds)), arm, spread(ours), spread(theirs)]
            cells += [f"{mean(ours) - mean(theirs):+.4f}", "[{:+.4f}, {:+.4f}]".format(*limits)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Line(NamedTuple):
    """A least-squares line, each number as (value, low, high) with its 95 % interval."""

    slope: tuple[float, float, float]
    at: tuple[float, float, float]  # the mean at one place


def line_at(x: np.ndarray, y: np.ndarray, at: float) -> Line:
    """The line through points x, y (N,), and its value at `at`."""
    fit, n = stats.linregress(x, y), len(x)
    value = fit.intercept + fit.slope * at
    residual = np.sqrt(np.sum((y - fit.intercept - fit.slope * x) ** 2) / (n - 2))
    error = residual * np.sqrt(1 / n + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    quantile = stats.t.ppf(0.975, n - 2)
    halves = quantile * fit.stderr, quantile * error
    return Line(*((v, v - half, v + half) for v, half in zip((fit.slope, value), halves, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--match", default="", help="only rows whose size, head and settings match this pattern")
    args = parser.parse_args()
    rows = read_jsonl(args.results)
    rows = [row for row in rows if re.search(args.match, f"{row['size']} {row['head']} {settings_of(row)}")]
    for size, head in sorted({(row["size"], row["head"]) for row in rows}):
        print(f"### {size}, {head}\n\n{table([row for row in rows if (row['size'], row['head']) == (size, head)])}\n")
    print(f"### The arms against the standard head\n\n{arms_compared(rows)}\n")


if __name__ == "__main__":
    main()
