"""Figures of a comparison, as PNG and SVG. An arm has one color; each of its runs is a line."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harmonic_gpt.evaluation.comparison.arms import interval_kinds
from harmonic_gpt.evaluation.comparison.canvas import LAYER, arm_colors, entries, legend, panels, plain, subplots
from harmonic_gpt.evaluation.comparison.measure import Measured
from harmonic_gpt.evaluation.comparison.result_figures import Read, forest, lens_agreement, paper_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run(NamedTuple):
    """A line of a figure."""

    color: str
    arm: str
    measured: Measured


def draw_all(
    measured: list[Measured], arms: dict[str, list[int]], comparison: dict, unigram: float, out: Path
) -> list[tuple[str, str]]:
    """Draw what there are numbers for. Returns (file, caption) of each figure, in the order of the report."""
    colors = arm_colors({arm: measured[members[0]].row["head"] for arm, members in arms.items()})
    runs = [Run(colors[arm], plain(arm), measured[i]) for arm, members in arms.items() for i in members]
    read = [run for run in runs if run.measured.interpretability]
    drawn = [
        (_losses(runs, unigram), "loss_curves",
         "Loss over training: validation (points) and training batches (faint). Lower is better."),
        (forest(comparison, colors), "forest",
         f"All measures of reading: the difference of two models with its 95 % interval{_made(comparison)}. "
         "Grey: no difference is shown."),
        (_parallelograms(read), "parallelograms",
         "Centers without their first component: parallelogram loss over its control, by task. "
         "Further left than the dotted line is structure."),
        (_layers(read), "layers",
         "Effective rank of hidden states on text, and parallelograms of single words, by layer."),
        (lens_agreement({"Lens agreement": _reads(read, _lens_rows)}), "lens_agreement",
         "Positions at which a layer's reading is the model's answer, of those whose answer depends on the context: "
         "by the model's own head (solid), and through a map fitted on other text (dashed)."),
        (_probes(read), "probes",
         "Probes of the layers, with the spread over folds. Above the dotted line, the layer holds the label."),
        (_similarity(comparison), "similarity",
         "Similarity of the models' layers. Yellow is the same up to rotation and scale."),
        (_explained_variance(runs), "explained_variance",
         "Explained variance of the centers. Further left is fewer dimensions, which is no merit by itself."),
        (_center_norms(runs), "center_norms", "Mean norm of the centers over training: does it level off?"),
        (paper_losses(_reads(read, _center_rows)), "parallelograms_paper",
         "Centers: the paper's protocol, by task. A model whose hollow points lie left of the other's as well does not "
         "owe its lower loss to the pairs; a collapsed embedding has a low one, too."),
        (paper_losses(_reads(read, _middle_rows)), "parallelograms_paper_middle_layer",
         "The middle layer's states of single words: the same (the paper's appendix C)."),
    ]  # fmt: skip
    for figure, name, _ in drawn:
        if figure is not None:
            figure.savefig(out / f"{name}.png", dpi=150)
            figure.set_layout_engine("none")  # it is laid out; doing it again for the SVG costs as much as drawing
            figure.savefig(out / f"{name}.svg")
    return [(f"{name}.png", caption) for figure, name, caption in drawn if figure is not None]


def _made(comparison: dict) -> str:
    """How the intervals of reading were made, in brackets; empty where there are none."""
    pairs = comparison.get("differences", ())
    rows = [{key: row for key, row in pair["headlines"].items() if key != "nats"} for pair in pairs]
    kinds = dict.fromkeys(kind for row in rows for kind in interval_kinds(row))
    return f" ({'; '.join(kinds)})" if kinds else ""


def _reads(runs: list[Run], rows_of: Callable[[dict], list[dict]]) -> list[Read]:
    return [Read(color, arm, rows_of(m.interpretability.row)) for color, arm, m in runs if m.interpretability]


def _lens_rows(row: dict) -> list[dict]:
    return [layer for layer in row.get("lens", {}).get("layers", ()) if "context_agreement" in layer]


def _center_rows(row: dict) -> list[dict]:
    return row["matrices"]["centers"]["tasks"]


def _middle_rows(row: dict) -> list[dict]:
    layers = row.get("layers", ())
    return layers[(len(layers) - 1) // 2].get("tasks", []) if layers else []


def _losses(runs: list[Run], unigram: float) -> "Figure | None":
    held = []
    for color, arm, m in runs:
        train = [(row["tokens"], row["loss"]) for row in m.metrics if "loss" in row]
        per_step = next((row["tokens"] / row["step"] for row in m.metrics if row.get("tokens")), None)
        validation = [(row["step"] * per_step, row["val_loss"]) for row in m.metrics if "val_loss" in row and per_step]
        held.append((color, arm, train, validation))
    losses = [loss for _, _, train, validation in held for _, loss in train + validation]
    if not losses:
        return None
    from matplotlib.ticker import EngFormatter

    figure, [axes] = panels()
    for color, arm, train, validation in held:
        if train:
            axes.plot(*zip(*train, strict=True), color=color, alpha=0.3, linewidth=1)
        if validation:
            axes.plot(*zip(*validation, strict=True), color=color, marker="o", markersize=3, label=arm)
    axes.axhline(unigram, color="grey", linestyle=":", label="token frequencies alone")
    axes.set(xlabel="training tokens", ylabel="loss (nats per token)", title="Loss over training")
    # The first steps, far above, would flatten the rest
    axes.set_ylim(min(losses) - 0.05, max(unigram + 0.5, min(losses) + 0.5))
    axes.xaxis.set_major_formatter(EngFormatter())
    legend(axes)
    return figure


def _explained_variance(runs: list[Run]) -> "Figure":
    figure, [axes] = panels()
    for color, arm, m in runs:
        axes.plot(np.arange(1, len(m.explained_variance) + 1), m.explained_variance, color=color, label=arm)
    axes.set(
        xscale="log",
        ylim=(0, 1.02),
        xlabel="principal components",
        ylabel="cumulative explained variance",
        title="Class centers",
    )
    legend(axes)
    return figure


def _center_norms(runs: list[Run]) -> "Figure | None":
    curves = [(color, arm, m.row["centers"]["norm_over_training"]) for color, arm, m in runs]
    if not any(curve for _, _, curve in curves):
        return None
    figure, [axes] = panels()
    for color, arm, curve in curves:
        if curve:
            axes.plot(*zip(*curve, strict=True), color=color, marker="o", markersize=3, label=arm)
    axes.set(xlabel="step", ylabel="mean norm of the centers", title="Weight norm over training")
    legend(axes, loc="lower right")
    return figure


def _parallelograms(runs: list[Run]) -> "Figure | None":
    """Cumulative distribution of each task's losses over their control, a dotted line at 1; None where no task has
    any."""
    held = [(color, arm, m.interpretability.losses) for color, arm, m in runs if m.interpretability]
    tasks = sorted({task for _, _, losses in held for task, values in losses.items() if len(values)})
    if not tasks:
        return None
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    ends = [np.quantile(values, (0.005, 0.99)) for _, _, losses in held for values in losses.values() if len(values)]
    left, right = min(low for low, _ in ends), max([high for _, high in ends] + [1.2])
    size = (max(3 * columns + 0.6, 6.5), 2.2 * rows + 0.9)
    figure, grid = subplots(rows, columns, *size, sharex=True, sharey=True)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    handles = {}
    for axes, task in zip(grid.flat, tasks, strict=False):
        for color, arm, losses in held:
            if len(values := np.sort(losses.get(task, ()))):
                values = np.quantile(values, np.linspace(0, 1, 400))  # small files
                [handles[arm]] = axes.plot(values, np.linspace(0, 1, 400), color=color, linewidth=1.3)
        axes.axvline(1, color="grey", linestyle=":", linewidth=1)
        axes.set_title(plain(task), fontsize=9)
        axes.set_xlim(left, right)
    for axes in grid.flat[len(tasks) - columns : len(tasks)]:  # the lowest one of each column
        axes.tick_params(labelbottom=True)
    label = "parallelogram loss / mean loss of shuffled pairs (left is better; dotted: no structure)"
    figure.supxlabel(label, fontsize=9)
    figure.supylabel("share of quadruples", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return figure


def _layers(runs: list[Run]) -> "Figure | None":
    held = [
        (color, arm, m.interpretability.row["layers"])
        for color, arm, m in runs
        if m.interpretability and "layers" in m.interpretability.row
    ]
    if not held:
        return None
    figure, [left, right] = panels(2, 9.5, 3.8)
    for color, arm, layers in held:
        shapes = [(row["layer"], row["compression"]) for row in layers]
        ranks = [(layer, shape["effective_rank"]) for layer, shape in shapes if not shape["collapsed"]]
        tests = [(row["layer"], [r["ratio"] for r in row.get("tasks", ()) if r.get("ratio")]) for row in layers]
        ratios = [(layer, float(np.mean(values))) for layer, values in tests if values]
        for axes, points in ((left, ranks), (right, ratios)):
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=arm)
    right.axhline(1, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel=LAYER, ylabel="effective rank of hidden states", title="Text")
    right.set(xlabel=LAYER, ylabel="parallelogram loss / shuffled pairs", title="Words that stand alone")
    for axes in (left, right):
        axes.locator_params(axis="x", integer=True)
        legend(axes)
    return figure


def _probes(runs: list[Run]) -> "Figure | None":
    """A panel a task, an F1 a layer: solid the multilayer perceptron, dashed logistic regression."""
    held = [
        (color, arm, [r for r in m.interpretability.row.get("probes", ()) if r["flag"] is None])
        for color, arm, m in runs
        if m.interpretability
    ]
    tasks = list(dict.fromkeys(row["task"] for _, _, rows in held for row in rows))
    if not tasks:
        return None
    figure, grid = panels(len(tasks), 3.4 * len(tasks) + 0.6, 3.8)
    for axes, task in zip(grid, tasks, strict=True):
        for k, (color, arm, rows) in enumerate(held):
            rows = [row for row in rows if row["task"] == task]
            x = np.array([row["layer"] for row in rows]) + 0.04 * (k - (len(held) - 1) / 2)
            for kind, style in (("mlp", "-"), ("logistic", "--")):
                f1, sd = ([row[kind][key] for row in rows] for key in ("f1", "sd"))
                look = {"color": color, "linestyle": style, "marker": "o", "markersize": 3, "capsize": 2}
                axes.errorbar(x, f1, sd, label=f"{arm}, {kind}", **look)
            axes.plot(x, [row["shuffled"]["f1"] for row in rows], color="grey", linestyle=":", label="shuffled labels")
        axes.set(title=plain(task), xlabel=LAYER)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 1)
    grid[0].set_ylabel("macro F1, five folds")
    shown = entries(grid[0])
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _similarity(comparison: dict) -> "Figure | None":
    """Heat maps of CKA and RSA, a row of panels a pair of models."""
    pairs = comparison.get("similarity", [])
    if not pairs:
        return None
    figure, grid = subplots(len(pairs), 2, 8.4, 3.6 * len(pairs) + 0.2)
    for line, pair in zip(grid, pairs, strict=True):
        for axes, key, label in zip(line, ("cka", "rsa"), ("linear CKA", "RSA"), strict=True):
            values = np.array([[np.nan if v is None else v for v in row] for row in pair[key]])
            image = axes.imshow(values, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(values) if values.size <= 64 else ():
                color = "black" if value > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
            shuffled = pair[f"{key}_shuffled"]
            axes.set(xlabel=f"layer of {plain(pair['second'])}", ylabel=f"layer of {plain(pair['first'])}")
            note = "" if shuffled is None else f" (shuffled positions: at most {shuffled:.2f})"
            axes.set_title(label + note, fontsize=9)
            axes.locator_params(integer=True)
        figure.colorbar(image, ax=line, shrink=0.9)
    return figure
