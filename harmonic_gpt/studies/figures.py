"""The paper's figures from our runs, each as PNG and SVG."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harmonic_gpt.extras import require
from harmonic_gpt.studies.algorithmic import CASES, CODE_EXPONENT
from harmonic_gpt.studies.networks import ARCHITECTURES
from harmonic_gpt.studies.structure import coset_partitions, first_two_components
from harmonic_gpt.studies.tasks import EQUIVALENCE_MODULUS, LAST_NODE, PROTOCOLS, TASKS, task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The paper's colors
COLORS = {
    "standard_mlp": "tab:green",
    "harmonic_mlp": "tab:red",
    "standard_transformer": "y",
    "harmonic_transformer": "tab:blue",
}
TOY_STYLES = {
    "cross-entropy": "tab:blue",
    "harmonic, n = 2 (code)": "tab:orange",
    "harmonic, n = 1 (paper)": "tab:gray",
}


def subplots(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple["Figure", Any]:
    """A figure of width x height inches and its axes. It belongs to no window and no backend, so that drawing here
    changes nothing in the caller's own use of matplotlib."""
    require("studies", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: "Figure", folder: Path, name: str) -> None:
    """NAME.png and NAME.svg."""
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=110)


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
    axes[0, 0].legend(frameon=False)
    save(figure, folder, "figure1_toy")


def algorithmic(folder: Path, trained: list) -> None:
    """All figures of the algorithmic tasks that the models in `trained` (report.Trained) allow, for each protocol."""
    for protocol in PROTOCOLS:
        main = [t for t in trained if t.row["kind"] == "main" and t.row["protocol"] == protocol]
        central = [t for t in main if "explained" in t.row]
        case = [t for t in trained if t.row["kind"] == "case" and t.row["protocol"] == protocol]
        if central:
            mlps = [t for t in central if t.row["model"].endswith("mlp")]
            if mlps:
                _representations(folder, f"figure2_representations_{protocol}", mlps)
            _representations(folder, f"representations_all_{protocol}", central)
            _explained_variance(folder, f"figure3a_variance_{protocol}", central)
            _data_efficiency(folder, f"figure3b_data_{protocol}", main)
            _grokking(folder, f"figure3c_grokking_{protocol}", central)
        if case:
            _case_study(folder, f"figure4_case_study_{protocol}", case)
    clean = [t for t in trained if t.row["protocol"] == "clean" and "explained" in t.row and t.row["kind"] != "case"]
    at_code_exponent = [t for t in clean if t.row["exponent"] == CODE_EXPONENT and t.row["kind"] != "exponents"]
    side_tasks = {t.row["task"] for t in clean if t.row["kind"] == "side"}
    if side_tasks:
        for name, heads in (
            ("figure6_ablation", ("standard", "euclidean_softmax", "dot_harmax", "harmonic")),
            ("figure12_other_losses", ("standard", "contrastive", "spherical", "harmonic")),
        ):
            _heads(folder, name, [t for t in at_code_exponent if t.row["task"] in side_tasks], heads)
    swept = [t for t in clean if t.row["model"].startswith("harmonic") and t.row["kind"] in ("main", "exponents")]
    if len({t.row["exponent"] for t in swept}) > 2:
        swept_tasks = {t.row["task"] for t in swept if t.row["kind"] == "exponents"}
        _exponents(folder, "figure13_exponents", [t for t in swept if t.row["task"] in swept_tasks])


def _runs(trained: list, task_name: str, model: str) -> list:
    return [t for t in trained if (t.row["task"], t.row["model"]) == (task_name, model)]


def _medians(ax, places, groups: list, model: str, style: str = "-") -> None:
    """A line through the medians of the groups, and the range of each."""
    ax.plot(places, [np.median(g) for g in groups], style, markersize=3, color=COLORS[model], label=_label(model))
    lowest, highest = ([pick(g) for g in groups] for pick in (min, max))
    ax.fill_between(places, lowest, highest, color=COLORS[model], alpha=0.12, linewidth=0)


def _tasks_of(trained: list) -> list[str]:
    present = {t.row["task"] for t in trained}
    return [name for name in TASKS if name in present]


def _models_of(trained: list) -> list[str]:
    present = {t.row["model"] for t in trained}
    return [name for name in COLORS if name in present]


def _label(model: str) -> str:
    head, architecture = model.rsplit("_", 1)
    return f"{head.capitalize()} {architecture.upper() if architecture == 'mlp' else architecture}"


def _colors(task_name: str) -> tuple[np.ndarray | str, str | None]:
    """What the paper colors by: equivalence class, generation, left coset of the Klein four-group."""
    if task_name == "equivalence":
        return np.arange(40) % EQUIVALENCE_MODULUS, "tab10"
    if task_name == "genealogy":
        return np.log2(np.arange(1, LAST_NODE + 1)).astype(int), "tab10"
    if task_name == "permutations":
        of_order_4 = [labels for name, labels in coset_partitions().items() if name.endswith("order 4")]
        return next(labels for labels in of_order_4 if len(set(labels)) == 6), "viridis"
    return "tab:blue", None


def _scatter(ax, task_name: str, points: np.ndarray, variance: float, size: float = 12) -> None:
    plane = first_two_components(points)
    color, cmap = _colors(task_name)
    ax.scatter(*plane.T, c=color, cmap=cmap, s=size, linewidths=0)
    ax.set_title(f"EV {100 * variance:.0f}%", fontsize=7, pad=2)
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.1)


def _representations(folder: Path, name: str, trained: list) -> None:
    """Figure 2: the first two components of every seed's embeddings, a row for a task and model."""
    kinds = [(task_name, model) for task_name in _tasks_of(trained) for model in _models_of(trained)]
    seeds = sorted({t.row["seed"] for t in trained})[:10]
    figure, axes = subplots(len(kinds), len(seeds), 1.15 * len(seeds) + 1.8, 1.2 * len(kinds))
    for row, (task_name, model) in zip(axes, kinds, strict=True):
        for ax, seed in zip(row, seeds, strict=True):
            runs = [t for t in _runs(trained, task_name, model) if t.row["seed"] == seed]
            if runs:
                _scatter(ax, task_name, runs[0].points, runs[0].row["explained"][1], size=7)
            else:
                ax.axis("off")
        row[0].set_ylabel(f"{task(task_name).title}\n{_label(model)}", rotation=0, ha="right", va="center", fontsize=7)
    save(figure, folder, name)


def _panels(names: list[str]):
    figure, axes = subplots(1, len(names), 2.5 * len(names) + 0.5, 3.2)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(task(name).title, fontsize=9)
    return figure, axes[0]


def _legend(figure: "Figure", ax) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)


def _explained_variance(folder: Path, name: str, trained: list) -> None:
    """Figure 3a: median cumulative explained variance, with the range over seeds."""
    figure, axes = _panels(_tasks_of(trained))
    for ax, task_name in zip(axes, _tasks_of(trained), strict=True):
        for model in _models_of(trained):
            shares = np.array([t.row["explained"] for t in _runs(trained, task_name, model)])
            if len(shares):
                _medians(ax, np.arange(1, shares.shape[1] + 1), list(shares.T), model)
        ax.set(xlabel="principal components", ylim=(0, 1.05), xticks=[2, 4, 6, 8, 10])
    axes[0].set_ylabel("cumulative explained variance")
    _legend(figure, axes[0])
    save(figure, folder, name)


def _data_efficiency(folder: Path, name: str, trained: list) -> None:
    """Figure 3b: median test accuracy against the train fraction, with the range over seeds."""
    figure, axes = _panels(_tasks_of(trained))
    for ax, task_name in zip(axes, _tasks_of(trained), strict=True):
        for model in _models_of(trained):
            rows = [t.row for t in _runs(trained, task_name, model)]
            fractions = sorted({row["fraction"] for row in rows})
            accuracies = [[row["test_accuracy"] for row in rows if row["fraction"] == f] for f in fractions]
            _medians(ax, fractions, accuracies, model, "o-")
        ax.set(xlabel="train fraction", ylim=(0, 1.05), xlim=(0, 1))
    axes[0].set_ylabel("test accuracy")
    _legend(figure, axes[0])
    save(figure, folder, name)


def _grokking(folder: Path, name: str, trained: list) -> None:
    """Figure 3c: epochs to test accuracy above 0.9 against the same in training. Runs that never get there are counted,
    not drawn."""
    figure, axes = _panels(_tasks_of(trained))
    for ax, task_name in zip(axes, _tasks_of(trained), strict=True):
        missing = []
        for model in _models_of(trained):
            epochs = [(t.row["train_epochs"], t.row["test_epochs"]) for t in _runs(trained, task_name, model)]
            reached = [pair for pair in epochs if None not in pair]
            train, test = zip(*reached, strict=True) if reached else ([], [])
            ax.plot(train, test, "v", markersize=5, color=COLORS[model], label=_label(model))
            if len(reached) < len(epochs):
                missing.append(f"{len(epochs) - len(reached)} {_label(model)}")
        if missing:
            told = "never:\n" + "\n".join(missing)
            ax.text(0.98, 0.02, told, transform=ax.transAxes, ha="right", va="bottom", fontsize=6)
        limit = max(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.plot([0, limit], [0, limit], "k--", linewidth=1)
        ax.set(xlim=(0, limit), ylim=(0, limit), xlabel="epochs to train accuracy > 0.9")
    axes[0].set_ylabel("epochs to test accuracy > 0.9")
    _legend(figure, axes[0])
    save(figure, folder, name)


def _case_study(folder: Path, name: str, trained: list) -> None:
    """Figure 4: modular addition with and without weight decay: accuracies of all seeds, embeddings of the first."""
    kinds = [(f"{head}_mlp", decay) for head, decay in CASES]
    figure, axes = subplots(2, len(kinds), 3 * len(kinds), 5.6)
    for (top, bottom), (model, decay) in zip(axes.T, kinds, strict=True):
        runs = [t for t in trained if (t.row["model"], t.row["weight_decay"]) == (model, decay)]
        for run in runs:
            top.plot(run.epochs, run.train, color="tab:blue", linewidth=0.8, alpha=0.6, label="train")
            top.plot(run.epochs, run.test, color="tab:orange", linewidth=0.8, alpha=0.6, label="test")
        top.set(title=f"{_label(model)}\nweight decay {decay:g}", ylim=(-0.05, 1.05), xlabel="epoch")
        if runs:
            _scatter(bottom, "modular_addition", runs[0].points, runs[0].row["explained"][1])
            for number, place in enumerate(first_two_components(runs[0].points)):
                bottom.annotate(str(number), place, fontsize=6)
    axes[0, 0].set_ylabel("accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].legend(handles[:2], labels[:2], frameon=False)
    save(figure, folder, name)


def _heads(folder: Path, name: str, trained: list, heads: tuple[str, ...]) -> None:
    """Figures 6 and 12: embeddings of the first seed under several heads; the median variance over seeds in the
    label."""
    kinds = [(task_name, architecture) for task_name in _tasks_of(trained) for architecture in ARCHITECTURES]
    figure, axes = subplots(len(kinds), len(heads), 2.1 * len(heads) + 1.5, 2.1 * len(kinds))
    for row, (task_name, architecture) in zip(axes, kinds, strict=True):
        for ax, head in zip(row, heads, strict=True):
            runs = _runs(trained, task_name, f"{head}_{architecture}")
            if not runs:
                ax.axis("off")
                continue
            _scatter(ax, task_name, runs[0].points, runs[0].row["explained"][1])
            variance = np.median([t.row["explained"][1] for t in runs])
            accuracy = np.median([t.row["test_accuracy"] for t in runs])
            ax.set_title(f"{head}\nmedian EV {100 * variance:.0f}%, test acc. {accuracy:.2f}", fontsize=7)
        row[0].set_ylabel(f"{task(task_name).title}\n{architecture}", rotation=0, ha="right", va="center", fontsize=8)
    save(figure, folder, name)


def _accuracy(row: dict) -> float:
    return row["test_accuracy"]


def _two_components(row: dict) -> float:
    return row["explained"][1]


def _exponents(folder: Path, name: str, trained: list) -> None:
    """Figure 13: test accuracy and variance in two components against the exponent on the distance; half of it is the
    code's."""
    names = _tasks_of(trained)
    figure, axes = subplots(2, len(names), 3.4 * len(names) + 1, 5, sharex=True)
    for column, task_name in zip(axes.T, names, strict=True):
        for model in _models_of(trained):
            rows = [t.row for t in _runs(trained, task_name, model)]
            exponents = sorted({row["exponent"] for row in rows})
            for ax, pick in zip(column, (_accuracy, _two_components), strict=True):
                _medians(ax, exponents, [[pick(r) for r in rows if r["exponent"] == n] for n in exponents], model, "o-")
                ax.set(ylim=(0, 1.05))
        column[0].set_title(task(task_name).title, fontsize=9)
    figure.supxlabel("n on the distance (paper's reading); the code's is half of it", fontsize=8)
    axes[0, 0].set_ylabel("test accuracy")
    axes[1, 0].set_ylabel("variance in two components")
    _legend(figure, axes[0, 0])
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
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    save(figure, folder, name)
