"""Figures of a comparison, as PNG and SVG. An arm has one colour; each of its runs is a line."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

from harmonic_gpt.evaluation.comparison.measure import Measured

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, MaxNLocator


def draw_all(
    measured: list[Measured], arms: dict[str, list[int]], comparison: dict, unigram: float, out: Path
) -> list[tuple[str, str]]:
    """Draw what there are numbers for. Returns (file, caption) of each figure, in the order of the report."""
    runs = [(f"C{k}", arm, measured[i]) for k, (arm, members) in enumerate(arms.items()) for i in members]
    relative = "parallelogram loss / mean loss of shuffled pairs  (left is better; dotted: no structure)"
    raw = "parallelogram loss, equation 3, in two principal components  (a collapsed embedding has a low one)"
    drawn = [
        (_losses(runs, unigram), "loss_curves", "Loss over training."),
        (_distributions(runs, lambda m: m.reading.losses, relative, 1.0), "parallelograms",
         "Centers without their first component: parallelogram loss over its control, by task."),
        (_layers(runs), "layers", "Text and single words in the layers."),
        (_probes(runs), "probes", "Probes of the layers, with the spread over folds."),
        (_similarity(comparison), "similarity", "Similarity of the models' layers."),
        (_explained_variance(runs), "explained_variance", "Explained variance of the centers."),
        (_center_norms(runs), "center_norms", "Norm of the centers over training."),
        (_distributions(runs, lambda m: m.reading.paper_losses, raw), "parallelograms_paper", "Centers: the paper's protocol, by task."),
        (_distributions(runs, lambda m: m.reading.middle_losses, raw), "parallelograms_paper_middle_layer",
         "The middle layer's states of single words: the paper's protocol, by task (its appendix C)."),
    ]  # fmt: skip
    for figure, name, _ in drawn:
        if figure is not None:
            figure.savefig(out / f"{name}.png", dpi=150)
            figure.set_layout_engine("none")  # it is laid out; doing it again for the SVG costs as much as drawing
            figure.savefig(out / f"{name}.svg")
            plt.close(figure)
    return [(f"{name}.png", caption) for figure, name, caption in drawn if figure is not None]


def _axes(columns: int = 1, width: float = 7, height: float = 4.2):
    figure, grid = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, *grid.flat


def _legend(axes, **options) -> None:
    """One entry a label."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(entries.values(), entries.keys(), frameon=False, fontsize=9, **options)


def _losses(runs: list, unigram: float):
    figure, axes = _axes()
    lowest = []
    for color, arm, m in runs:
        train = [(row["tokens"], row["loss"]) for row in m.metrics if "loss" in row]
        per_step = next((row["tokens"] / row["step"] for row in m.metrics if row.get("tokens")), None)
        validation = [(row["step"] * per_step, row["val_loss"]) for row in m.metrics if "val_loss" in row and per_step]
        if train:
            axes.plot(*zip(*train, strict=True), color=color, alpha=0.3, linewidth=1)
        if validation:
            axes.plot(
                *zip(*validation, strict=True), color=color, marker="o", markersize=3, label=f"{arm} (validation)"
            )
        lowest += [loss for _, loss in train + validation]
    if not lowest:
        plt.close(figure)
        return None
    axes.axhline(unigram, color="grey", linestyle=":", label="token frequencies alone")
    axes.set(xlabel="training tokens", ylabel="nats a token", title="Loss (faint: training batches)")
    axes.set_ylim(
        min(lowest) - 0.05, max(unigram + 0.5, min(lowest) + 0.5)
    )  # the first steps, far above, would flatten the rest
    axes.xaxis.set_major_formatter(EngFormatter())
    _legend(axes)
    return figure


def _explained_variance(runs: list):
    figure, axes = _axes()
    for color, arm, m in runs:
        axes.plot(np.arange(1, len(m.explained_variance) + 1), m.explained_variance, color=color, label=arm)
    axes.set(
        xscale="log",
        ylim=(0, 1.02),
        xlabel="principal components",
        ylabel="cumulative explained variance",
        title="Class centers",
    )
    _legend(axes)
    return figure


def _center_norms(runs: list):
    curves = [(color, arm, m.row["centers"]["norm_over_training"]) for color, arm, m in runs]
    if not any(curve for _, _, curve in curves):
        return None
    figure, axes = _axes()
    for color, arm, curve in curves:
        if curve:
            axes.plot(*zip(*curve, strict=True), color=color, marker="o", markersize=3, label=arm)
    axes.set(xlabel="step", ylabel="mean norm of the centers", title="Weight norm over training")
    _legend(axes, loc="lower right")
    return figure


def _distributions(runs: list, losses_of: Callable, label: str, control: float | None = None):
    """Cumulative distribution of each task's losses, a dotted line at the control's; None where no task has any."""
    held = [(color, arm, losses_of(m)) for color, arm, m in runs if m.reading]
    tasks = sorted({task for _, _, losses in held for task, values in losses.items() if len(values)})
    if not tasks:
        return None
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    size = (max(3 * columns + 0.6, 6.5), 2.2 * rows + 0.9)
    ends = [np.quantile(values, (0.005, 0.99)) for _, _, losses in held for values in losses.values() if len(values)]
    left, right = min(low for low, _ in ends), max([high for _, high in ends] + ([1.2 * control] if control else []))
    figure, grid = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    handles = {}
    for axes, task in zip(grid.flat, tasks, strict=False):
        for color, arm, losses in held:
            if len(values := np.sort(losses.get(task, ()))):
                values = np.quantile(values, np.linspace(0, 1, 400))  # small files
                [handles[arm]] = axes.plot(values, np.linspace(0, 1, 400), color=color, linewidth=1.3)
        if control:
            axes.axvline(control, color="grey", linestyle=":", linewidth=1)
        axes.set_title(task, fontsize=9)
        axes.set_xlim(left, right)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(tasks) - columns : len(tasks)]:  # the lowest one of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel(label, fontsize=9)
    figure.supylabel("share of quadruples", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return figure


def _layers(runs: list):
    held = [(color, arm, m.reading.row["layers"]) for color, arm, m in runs if m.reading and "layers" in m.reading.row]
    if not held:
        return None
    figure, left, right = _axes(2, 9.5, 3.8)
    for color, arm, layers in held:
        ranks = [
            (row["layer"], row["compression"]["effective_rank"])
            for row in layers
            if not row["compression"]["collapsed"]
        ]
        axes_points = [(row["layer"], [r["ratio"] for r in row.get("tasks", ()) if r.get("ratio")]) for row in layers]
        ratios = [(layer, float(np.mean(values))) for layer, values in axes_points if values]
        for axes, points in ((left, ranks), (right, ratios)):
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=arm)
    right.axhline(1, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="layer (0: embeddings)", ylabel="effective rank of hidden states", title="Text")
    right.set(
        xlabel="layer (0: embeddings)", ylabel="parallelogram loss / shuffled pairs", title="Words that stand alone"
    )
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
    return figure


def _probes(runs: list):
    """A panel a task, an F1 a layer: solid the multilayer perceptron, dashed logistic regression."""
    held = [
        (color, arm, [r for r in m.reading.row.get("probes", ()) if r["flag"] is None])
        for color, arm, m in runs
        if m.reading
    ]
    tasks = list(dict.fromkeys(row["task"] for _, _, rows in held for row in rows))
    if not tasks:
        return None
    figure, *panels = _axes(len(tasks), 3.4 * len(tasks) + 0.6, 3.8)
    for axes, task in zip(panels, tasks, strict=True):
        for k, (color, arm, rows) in enumerate(held):
            rows = [row for row in rows if row["task"] == task]
            x = np.array([row["layer"] for row in rows]) + 0.04 * (k - (len(held) - 1) / 2)
            for name, style in (("mlp", "-"), ("logistic", "--")):
                f1, sd = ([row[name][key] for row in rows] for key in ("f1", "sd"))
                axes.errorbar(
                    x, f1, sd, color=color, linestyle=style, marker="o", markersize=3, capsize=2, label=f"{arm}, {name}"
                )
            axes.plot(x, [row["shuffled"]["f1"] for row in rows], color="grey", linestyle=":", label="shuffled labels")
        axes.set(title=task, xlabel="layer (0: embeddings)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("macro F1, five folds")
    entries = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _similarity(comparison: dict):
    """Heat maps of CKA and RSA, a row of panels a pair of models."""
    pairs = comparison.get("similarity", [])
    if not pairs:
        return None
    figure, grid = plt.subplots(
        len(pairs), 2, figsize=(8.4, 3.6 * len(pairs) + 0.2), layout="constrained", squeeze=False
    )
    for line, pair in zip(grid, pairs, strict=True):
        for axes, key, label in zip(line, ("cka", "rsa"), ("linear CKA", "RSA"), strict=True):
            values = np.array([[np.nan if v is None else v for v in row] for row in pair[key]])
            image = axes.imshow(values, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(values) if values.size <= 64 else ():
                axes.text(
                    j,
                    i,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if value > 0.6 else "white",
                )
            shuffled = pair[f"{key}_shuffled"]
            axes.set(xlabel=f"layer of {pair['second']}", ylabel=f"layer of {pair['first']}")
            axes.set_title(
                label + ("" if shuffled is None else f" (shuffled positions: at most {shuffled:.2f})"), fontsize=9
            )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=line, shrink=0.9)
    return figure
