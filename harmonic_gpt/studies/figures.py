"""The paper's figures from our runs, each as PNG and SVG."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# The paper's colours
COLORS = {"standard_mlp": "tab:green", "harmonic_mlp": "tab:red", "standard_transformer": "y", "harmonic_transformer": "tab:blue"}
TOY_STYLES = {"cross-entropy": "tab:blue", "harmonic, n = 2 (code)": "tab:orange", "harmonic, n = 1 (paper)": "tab:gray"}


def save(figure: Figure, folder: Path, name: str) -> None:
    """NAME.png and NAME.svg."""
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{name}.{suffix}", dpi=110)
    plt.close(figure)


def toy(folder: Path, curves: dict) -> None:
    """Figure 1: loss and ||W|| against steps, median and range over seeds."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex=True)
    for row, (case, heads) in zip(axes, curves.items(), strict=True):
        for head, (losses, norms) in heads.items():
            for ax, values in zip(row, (losses, norms), strict=True):
                steps = np.unique(np.linspace(0, len(values) - 1, 250, dtype=int))  # of all of them, an SVG takes megabytes
                low, middle, high = (np.quantile(values.numpy()[steps], q, axis=1) for q in (0, 0.5, 1))
                ax.plot(steps, middle, color=TOY_STYLES[head], label=head)
                ax.fill_between(steps, low, high, color=TOY_STYLES[head], alpha=0.15, linewidth=0)
        row[0].set(yscale="log", ylabel=f"{case}\nloss (nats)")
        row[1].set(ylabel="norm of W", ylim=(0, None))
    for ax in axes[1]:
        ax.set_xlabel("step")
    axes[0, 0].legend(frameon=False)
    save(figure, folder, "figure1_toy")
