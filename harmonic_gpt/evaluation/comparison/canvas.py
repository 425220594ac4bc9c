"""What the figures of a comparison have in common: colors, axes, legends.

Nothing here touches pyplot: the caller's backend stays what it is.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from harmonic_gpt.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD_COLORS = {"harmonic": "C0", "standard": "C1"}  # blue and orange, in every figure of the project
OTHER_COLORS = [f"C{k}" for k in range(2, 10)]
LAYER = "layer (0: embeddings)"


def plain(name: str) -> str:
    """A name in which matplotlib sees no mathematics."""
    return name.replace("$", r"\$")


def arm_colors(heads: dict[str, str]) -> dict[str, str]:
    """{arm: color} from {arm: head}. The first arm of a head has the head's own color."""
    colors: dict[str, str] = {}
    for arm, head in heads.items():
        own = HEAD_COLORS.get(head)
        free = [color for color in OTHER_COLORS if color not in colors.values()]
        colors[arm] = own if own and own not in colors.values() else (free or OTHER_COLORS)[0]
    return colors


def subplots(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple["Figure", np.ndarray]:
    """A figure of width x height inches, and its grid of axes (rows, columns)."""
    require("eval", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def panels(columns: int = 1, width: float = 7, height: float = 4.2) -> tuple["Figure", list[Any]]:
    figure, grid = subplots(1, columns, width, height)
    for axes in grid.flat:
        axes.grid(alpha=0.25)
    return figure, list(grid.flat)


def entries(axes: Any) -> dict[str, Any]:
    """{label: line}: one entry a label, however many runs have it."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def legend(axes: Any, **options: Any) -> None:
    shown = entries(axes)
    axes.legend(shown.values(), shown.keys(), frameon=False, fontsize=9, **options)
