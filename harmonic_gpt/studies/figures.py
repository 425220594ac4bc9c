"""The paper's figures that need the embeddings or the curves of our runs, each as PNG and SVG. row_figures.py draws the
others."""

from pathlib import Path
from typing import Any

import numpy as np

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS, subplots
from harmonic_gpt.studies import row_figures
from harmonic_gpt.studies.algorithmic import CASES, CODE_EXPONENT
from harmonic_gpt.studies.networks import ARCHITECTURES
from harmonic_gpt.studies.row_figures import HEADS, LIGHT, color_of, label_of, save
from harmonic_gpt.studies.structure import coset_partitions, first_two_components
from harmonic_gpt.studies.tasks import EQUIVALENCE_MODULUS, LAST_NODE, PROTOCOLS, task

TOY_STYLES = {
    "cross-entropy": HEAD_COLORS["standard"],
    "harmonic, n = 2 (code)": HEAD_COLORS["harmonic"],
    "harmonic, n = 1 (paper)": LIGHT["harmonic"],
}
# What the points of a task are colored by; those of other tasks have the color of their head
COLORED_BY = {"equivalence": "class", "genealogy": "generation", "permutations": "coset"}


def toy(folder: Path, curves: dict) -> None:
    """Figure 1: loss and ||W|| against steps, median and range over seeds."""
    figure, axes = subplots(2, 2, 10, 6, sharex=True)
    for row, (case, heads) in zip(axes, curves.items(), strict=True):
        for head, (losses, norms) in heads.items():
            for ax, values in zip(row, (losses, norms), strict=True):
                # With all steps an SVG takes megabytes
                steps = np.unique(np.linspace(0, len(values) - 1, 250, dtype=int))
                low, middle, high = (np.quantile(values.numpy()[steps], q, axis=1) for q in (0, 0.5, 1))
                ax.plot(steps, middle, color=TOY_STYLES[head], label=head)
                ax.fill_between(steps, low, high, color=TOY_STYLES[head], alpha=0.15, linewidth=0)
        row[0].set(yscale="log", ylabel=f"{case}\nloss (nats)")
        row[1].set(ylabel="norm of W", ylim=(0, None))
    for ax in axes[1]:
        ax.set_xlabel("step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, folder, "figure1_toy")


def algorithmic(folder: Path, trained: list) -> None:
    """All figures of the algorithmic tasks that the models in `trained` (report.Trained) allow, for each protocol."""
    row_figures.draw(folder, [t.row for t in trained])
    for protocol in PROTOCOLS:
        main = [t for t in trained if t.row["kind"] == "main" and t.row["protocol"] == protocol]
        central = [t for t in main if "explained" in t.row]
        case = [t for t in trained if t.row["kind"] == "case" and t.row["protocol"] == protocol]
        mlps = [t for t in central if t.row["model"].endswith("mlp")]
        if mlps:
            _representations(folder, f"figure2_representations_{protocol}", mlps)
        if central:
            _representations(folder, f"representations_all_{protocol}", central)
        if case:
            _case_study(folder, f"figure4_case_study_{protocol}", case)
    clean = [t for t in trained if t.row["protocol"] == "clean" and "explained" in t.row]
    at_code_exponent = [t for t in clean if t.row["exponent"] == CODE_EXPONENT and t.row["kind"] in ("main", "side")]
    if side_tasks := {t.row["task"] for t in clean if t.row["kind"] == "side"}:
        _heads(folder, "figures6_12_heads", [t for t in at_code_exponent if t.row["task"] in side_tasks])


def _runs(trained: list, task_name: str, model: str) -> list:
    return [t for t in trained if (t.row["task"], t.row["model"]) == (task_name, model)]


def _colors(task_name: str, model: str) -> tuple[np.ndarray | str, str | None]:
    """What the paper colors by: equivalence class, generation, left coset of the Klein four-group; else the head."""
    if task_name == "equivalence":
        return np.arange(40) % EQUIVALENCE_MODULUS, "tab10"
    if task_name == "genealogy":
        return np.log2(np.arange(1, LAST_NODE + 1)).astype(int), "viridis"
    if task_name == "permutations":
        of_order_4 = [labels for name, labels in coset_partitions().items() if name.endswith("order 4")]
        return next(labels for labels in of_order_4 if len(set(labels)) == 6), "tab10"
    return color_of(model), None


def _scatter(axes: Any, trained: Any, size: float = 12) -> None:
    plane = first_two_components(trained.points)
    color, cmap = _colors(trained.row["task"], trained.row["model"])
    axes.scatter(*plane.T, c=color, cmap=cmap, s=size, linewidths=0)
    axes.set_title(f"{100 * trained.row['explained'][1]:.0f} % of variance", fontsize=7, pad=2)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)
    axes.spines[:].set_visible(True)


def _name_line(axes: Any, task_name: str, model: str) -> None:
    """Left of a line of panels: the task, the model, and what its points are colored by."""
    by = f"\n(color: {COLORED_BY[task_name]})" if task_name in COLORED_BY else ""
    axes.set_ylabel(f"{task(task_name).title}\n{model}{by}", rotation=0, ha="right", va="center", fontsize=8)


def _representations(folder: Path, name: str, trained: list) -> None:
    """Figure 2: the first two components of every seed's embeddings, a line of panels for a task and model."""
    rows = [t.row for t in trained]
    models = [model for model in row_figures.MODELS if model in {row["model"] for row in rows}]
    kinds = [(task_name, model) for task_name in row_figures.tasks_of(rows) for model in models]
    kinds = [(task_name, model) for task_name, model in kinds if _runs(trained, task_name, model)]
    seeds = sorted({row["seed"] for row in rows})[:10]
    figure, grid = subplots(len(kinds), len(seeds), 1.15 * len(seeds) + 1.8, 1.2 * len(kinds))
    for line, (task_name, model) in zip(grid, kinds, strict=True):
        for axes, seed in zip(line, seeds, strict=True):
            runs = [t for t in _runs(trained, task_name, model) if t.row["seed"] == seed]
            if runs:
                _scatter(axes, runs[0], size=7)
            else:
                axes.axis("off")
        _name_line(line[0], task_name, label_of(model))
    save(figure, folder, name)


def _case_study(folder: Path, name: str, trained: list) -> None:
    """Figure 4: modular addition with and without weight decay: accuracies of all seeds, embeddings of the first."""
    kinds = [(f"{head}_mlp", decay) for head, decay in CASES]
    figure, grid = subplots(2, len(kinds), 3 * len(kinds), 5.6)
    for (top, bottom), (model, decay) in zip(grid.T, kinds, strict=True):
        runs = [t for t in trained if (t.row["model"], t.row["weight_decay"]) == (model, decay)]
        for run in runs:
            top.plot(run.epochs, run.train, color="0.6", linewidth=0.8, label="training")
            top.plot(run.epochs, run.test, color=color_of(model), linewidth=0.8, alpha=0.7, label="test")
        top.set(title=f"{label_of(model)}\nweight decay {decay:g}", ylim=(-0.05, 1.05), xlabel="epoch")
        if runs:
            handles, labels = top.get_legend_handles_labels()
            top.legend(handles[:2], labels[:2], frameon=False, fontsize=8)
            _scatter(bottom, runs[0])
        else:
            bottom.axis("off")
    grid[0, 0].set_ylabel("accuracy")
    save(figure, folder, name)


def _heads(folder: Path, name: str, trained: list) -> None:
    """Figures 6 and 12: embeddings of the first seed under every head."""
    names = row_figures.tasks_of([t.row for t in trained])
    kinds = [(task_name, architecture) for task_name in names for architecture in ARCHITECTURES]
    figure, grid = subplots(len(kinds), len(HEADS), 1.6 * len(HEADS) + 1.5, 1.7 * len(kinds))
    for line, (task_name, architecture) in zip(grid, kinds, strict=True):
        for axes, head in zip(line, HEADS, strict=True):
            if runs := _runs(trained, task_name, f"{head}_{architecture}"):
                _scatter(axes, runs[0])
                axes.set_title(f"{head.replace('_', ' ')}\n{axes.get_title()}", fontsize=8)
            else:
                axes.axis("off")
        _name_line(line[0], task_name, architecture)
    save(figure, folder, name)


def digit_weights(folder: Path, name: str, rows: dict) -> None:
    """Weights (classes, D) of each row as square images; each row has its own symmetric scale of colors."""
    classes = len(next(iter(rows.values())))
    figure, axes = subplots(len(rows), classes, classes + 1.6, 1.15 * len(rows))
    for row, (label, weights) in zip(axes, rows.items(), strict=True):
        side = int(weights.shape[1] ** 0.5)
        limit = float(weights.abs().max())
        for ax, image in zip(row, weights, strict=True):
            ax.imshow(image.view(side, side).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.supxlabel("red: positive, blue: negative; each line of images has its own scale", fontsize=9)
    save(figure, folder, name)
