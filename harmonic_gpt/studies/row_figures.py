"""Figures of the algorithmic tasks that need the rows of results.jsonl and nothing else, each as PNG and SVG.

Harmonic is blue and standard orange, the MLP solid and dark, the transformer dashed and light. Lines are medians over
seeds, bands the range.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS, subplots
from harmonic_gpt.studies.algorithmic import CODE_EXPONENT, MAIN_FRACTION, distinct
from harmonic_gpt.studies.networks import ARCHITECTURES, HEAD_KINDS
from harmonic_gpt.studies.tasks import PROTOCOLS, TASKS, task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("standard_mlp", "harmonic_mlp", "standard_transformer", "harmonic_transformer")
LIGHT = {"harmonic": "#7fb8e6", "standard": "#ffbe86"}
OTHER_HEADS = "0.5"  # the ablations and other losses, named on the axis
HEADS = ("standard", *(head for head in HEAD_KINDS if head not in ("standard", "harmonic")), "harmonic")
COUNTS_AT = 7e3  # epochs: right of every point
SPREAD = 0.3  # of the seeds of one head, over the width of its place
Rows = list[dict]


def save(figure: "Figure", folder: Path, name: str) -> None:
    """NAME.png and NAME.svg."""
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=110)


def draw(folder: Path, rows: Rows) -> None:
    """All figures that the rows allow, for each protocol."""
    rows = distinct(rows)
    for protocol in PROTOCOLS:
        main = [row for row in rows if row["kind"] == "main" and row["protocol"] == protocol]
        central = [row for row in main if row["fraction"] == MAIN_FRACTION and "explained" in row]
        if central:
            _explained_variance(folder, f"figure3a_variance_{protocol}", central)
            _grokking(folder, f"figure3c_grokking_{protocol}", central)
        if len({row["fraction"] for row in main}) > 1:
            _data_efficiency(folder, f"figure3b_data_{protocol}", main)
    clean = [row for row in rows if row["protocol"] == "clean" and "explained" in row and row["kind"] != "case"]
    side_tasks = {row["task"] for row in clean if row["kind"] == "side"}
    if side_tasks:
        kept = [row for row in clean if row["exponent"] == CODE_EXPONENT and row["kind"] != "exponents"]
        _heads(folder, "heads", [row for row in kept if row["task"] in side_tasks])
    swept = [row for row in clean if row["model"].startswith("harmonic") and row["kind"] in ("main", "exponents")]
    swept_tasks = {row["task"] for row in swept if row["kind"] == "exponents"}
    swept = [row for row in swept if row["task"] in swept_tasks]
    if len({row["exponent"] for row in swept}) > 2:
        _exponents(folder, "figure13_exponents", swept)


def color_of(model: str) -> str:
    head, architecture = model.rsplit("_", 1)
    return (HEAD_COLORS if architecture == "mlp" else LIGHT).get(head, OTHER_HEADS)


def label_of(model: str) -> str:
    head, architecture = model.rsplit("_", 1)
    return f"{head.capitalize()} {architecture.upper() if architecture == 'mlp' else architecture}"


def tasks_of(rows: Rows) -> list[str]:
    present = {row["task"] for row in rows}
    return [name for name in TASKS if name in present]


def _models_of(rows: Rows) -> list[str]:
    present = {row["model"] for row in rows}
    return [name for name in MODELS if name in present]


def _runs(rows: Rows, task_name: str, model: str) -> Rows:
    return [row for row in rows if (row["task"], row["model"]) == (task_name, model)]


def _panels(names: list[str], **options: Any) -> tuple["Figure", dict[str, Any]]:
    """A panel for each task, three in a line."""
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, grid = subplots(lines, columns, 2.9 * columns + 0.5, 2.5 * lines + 0.5, **options)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    panels = dict(zip(names, grid.flat, strict=False))
    for name, axes in panels.items():
        axes.set_title(task(name).title, fontsize=10)
        axes.grid(alpha=0.25)
    return figure, panels


def _medians(axes: Any, places: Any, groups: list, model: str) -> None:
    """A line through the medians of the groups, and the range of each."""
    style = "o-" if model.endswith("mlp") else "s--"
    axes.plot(places, [np.median(g) for g in groups], style, markersize=4, color=color_of(model), label=label_of(model))
    lowest, highest = ([pick(g) for g in groups] for pick in (min, max))
    axes.fill_between(places, lowest, highest, color=color_of(model), alpha=0.15, linewidth=0)


def _legend(figure: "Figure", axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)


def _explained_variance(folder: Path, name: str, rows: Rows) -> None:
    """Figure 3a: cumulative explained variance of the embeddings."""
    figure, panels = _panels(tasks_of(rows), sharex=True, sharey=True)
    for task_name, axes in panels.items():
        for model in _models_of(rows):
            shares = np.array([row["explained"] for row in _runs(rows, task_name, model)])
            if len(shares):
                _medians(axes, np.arange(1, shares.shape[1] + 1), list(shares.T), model)
        axes.set(ylim=(0, 1.05), xticks=[2, 4, 6, 8, 10])
    figure.supxlabel("principal components", fontsize=10)
    figure.supylabel("share of the variance", fontsize=10)
    _legend(figure, next(iter(panels.values())))
    save(figure, folder, name)


def _data_efficiency(folder: Path, name: str, rows: Rows) -> None:
    """Figure 3b: test accuracy against the train fraction."""
    figure, panels = _panels(tasks_of(rows), sharex=True, sharey=True)
    for task_name, axes in panels.items():
        for model in _models_of(rows):
            runs = _runs(rows, task_name, model)
            fractions = sorted({row["fraction"] for row in runs})
            if fractions:
                groups = [[row["test_accuracy"] for row in runs if row["fraction"] == f] for f in fractions]
                _medians(axes, fractions, groups, model)
        axes.set(ylim=(0, 1.05), xlim=(0, 1))
    figure.supxlabel("share of the examples to train on", fontsize=10)
    figure.supylabel("test accuracy", fontsize=10)
    _legend(figure, next(iter(panels.values())))
    save(figure, folder, name)


def _grokking(folder: Path, name: str, rows: Rows) -> None:
    """Figure 3c: epochs from a training accuracy above 0.9 to such a test accuracy, a point a seed. Seeds that never
    get to either are counted at the right; tasks in which no seed generalized are named and not drawn."""
    done = [row for row in rows if row["train_epochs"] is not None and row["test_epochs"] is not None]
    names = tasks_of(done)
    if not names:
        return
    figure, panels = _panels(names, sharex=True, sharey=True)
    models = _models_of(rows)
    for task_name, axes in panels.items():
        for place, model in enumerate(models):
            runs, reached = (_runs(held, task_name, model) for held in (rows, done))
            offsets = SPREAD * np.linspace(-1, 1, max(len(reached), 2))[: len(reached)]
            gaps = [row["test_epochs"] - row["train_epochs"] for row in reached]
            axes.plot(gaps, place + offsets, "o" if model.endswith("mlp") else "s", markersize=5, color=color_of(model))
            unlearned = sum(row["train_epochs"] is None for row in runs)
            counts = {"not learned": unlearned, "not generalized": len(runs) - len(reached) - unlearned}
            told = "\n".join(f"{count} {what}" for what, count in counts.items() if count)
            axes.text(COUNTS_AT, place, told, va="center", fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(COUNTS_AT / 1.7, color="0.8", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=10)
        ticks = {-100: "-100", 0: "0", 10: "10", 100: "100", 1000: "1k"}
        axes.set(xlim=(-200, 6e6), yticks=range(len(models)), ylim=(len(models) - 0.45, -0.55))
        axes.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
        axes.set_yticklabels([label_of(model) for model in models])
        axes.grid(visible=False)
    never = [task(task_name).title for task_name in tasks_of(rows) if task_name not in names]
    note = f"\nnot drawn, since no seed generalized: {', '.join(never)}" if never else ""
    figure.supxlabel(f"epochs from learning to generalizing; right: seeds that did not{note}", fontsize=10)
    save(figure, folder, name)


def _accuracy(row: dict) -> float:
    return row["test_accuracy"]


def _two_components(row: dict) -> float:
    return row["explained"][1]


QUANTITIES: tuple[tuple[str, Callable[[dict], float]], ...] = (
    ("variance in\ntwo components", _two_components),
    ("test accuracy", _accuracy),
)


def _heads(folder: Path, name: str, rows: Rows) -> None:
    """Figures 6 and 12 as numbers: every head, a point a seed, the median a bar."""
    kinds = [(task_name, architecture) for task_name in tasks_of(rows) for architecture in ARCHITECTURES]
    figure, grid = subplots(2, len(kinds), 2.3 * len(kinds) + 0.8, 4.6, sharex=True, sharey=True)
    for column, (task_name, architecture) in zip(grid.T, kinds, strict=True):
        for axes, (quantity, pick) in zip(column, QUANTITIES, strict=True):
            for place, head in enumerate(HEADS):
                values = [pick(row) for row in _runs(rows, task_name, f"{head}_{architecture}")]
                color = HEAD_COLORS.get(head, OTHER_HEADS)
                if values:
                    offsets = SPREAD * np.linspace(-1, 1, max(len(values), 2))[: len(values)]
                    axes.plot(place + offsets, sorted(values), "o", markersize=4, color=color, alpha=0.8)
                    axes.hlines(float(np.median(values)), place - 0.4, place + 0.4, color=color, linewidth=2)
            axes.grid(axis="y", alpha=0.25)
            axes.set_ylim(-0.05, 1.05)
            if axes is grid[0, 0] or axes is grid[1, 0]:
                axes.set_ylabel(quantity)
        shown = architecture.upper() if architecture == "mlp" else architecture
        column[0].set_title(f"{task(task_name).title}\n{shown}", fontsize=10)
        column[1].set_xticks(range(len(HEADS)), [head.replace("_", " ") for head in HEADS], rotation=90, fontsize=9)
    save(figure, folder, name)


def _exponents(folder: Path, name: str, rows: Rows) -> None:
    """Figure 13: test accuracy and variance in two components against the exponent on the distance."""
    names = tasks_of(rows)
    figure, grid = subplots(2, len(names), 3.4 * len(names) + 1, 5, sharex=True, sharey=True)
    for column, task_name in zip(grid.T, names, strict=True):
        for model in _models_of(rows):
            runs = _runs(rows, task_name, model)
            exponents = sorted({row["exponent"] for row in runs})
            for axes, (_, pick) in zip(column, QUANTITIES, strict=True):
                if exponents:
                    _medians(axes, exponents, [[pick(r) for r in runs if r["exponent"] == n] for n in exponents], model)
                axes.grid(alpha=0.25)
                axes.set_ylim(0, 1.05)
        column[0].set_title(task(task_name).title, fontsize=10)
    for axes, (quantity, _) in zip(grid[:, 0], QUANTITIES, strict=True):
        axes.set_ylabel(quantity)
    figure.supxlabel("n on the distance (the published code's n is half of it)", fontsize=10)
    _legend(figure, grid[0, 0])
    save(figure, folder, name)
