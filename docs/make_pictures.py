"""Draw the pictures of the idea: idea.png of README, distance_or_dot_product.png of the page about the head.

python docs/make_pictures.py

The right half of idea.png is docs/images/explorer_token.png, which `make docs-images` takes from the quickstart's
explorer.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread as read_png

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS

IMAGES = Path(__file__).parent / "images"
HARMONIC, STANDARD = HEAD_COLORS["harmonic"], HEAD_COLORS["standard"]
TOKENS = {
    "sea": (1.4, 1.15),
    "lake": (0.62, 0.86),
    "road": (1.15, -0.45),
    "hill": (-0.75, 0.8),
    "house": (-0.45, -0.75),
}
HIDDEN = np.array([0.78, 0.52])
EXPONENT = 4


def probabilities(points: np.ndarray, centers: np.ndarray, head: str) -> np.ndarray:
    """p (..., V) of points (..., 2): softmax of the dot products, or proportional to distance^-EXPONENT."""
    if head == "standard":
        logits = 2 * points @ centers.T
    else:
        logits = -EXPONENT * np.log(np.linalg.norm(points[..., None, :] - centers, axis=-1))
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def draw_head(axes: Axes, head: str, color: str, title: str) -> None:
    centers = np.array(list(TOKENS.values()))
    span = np.linspace(-1.6, 2.1, 500), np.linspace(-1.35, 1.75, 420)
    grid = np.stack(np.meshgrid(*span), -1)
    p = probabilities(grid, centers, head)
    axes.contour(*span, p.argmax(-1), levels=np.arange(0.5, len(centers)), colors="0.75", linewidths=0.8)
    for index in range(len(centers)):
        mine = np.where(p.argmax(-1) == index, p[..., index], np.nan)
        axes.contourf(*span, mine, levels=np.linspace(0.2, 1, 9), cmap=_shades(color), alpha=0.55)
    here = probabilities(HIDDEN, centers, head)
    for token, center, share in zip(TOKENS, centers, here, strict=True):
        if head == "standard":
            axes.annotate("", center, (0, 0), arrowprops={"arrowstyle": "->", "color": "0.35", "lw": 1.2})
        else:
            axes.plot(*np.stack([HIDDEN, center]).T, color="0.35", lw=0.8, ls=":")
            axes.plot(*center, "o", color="0.2", ms=6)
        best = share == here.max()
        axes.annotate(
            f"{token}  {share:.2f}", center, (0, 8 if center[1] > 0 else -18), textcoords="offset points", ha="center",
            fontsize=11, fontweight="bold" if best else "normal",
        )  # fmt: skip
    axes.plot(*HIDDEN, "*", color="black", ms=14)
    axes.annotate("hidden state", HIDDEN, (8, -14), textcoords="offset points", fontsize=10, style="italic")
    axes.set_title(title, fontsize=12, color=color, fontweight="bold", loc="left")
    axes.set(xticks=[], yticks=[], aspect="equal", xlim=(-1.6, 2.1), ylim=(-1.35, 1.75))
    for side in axes.spines.values():
        side.set_color("0.8")


def _shades(color: str) -> matplotlib.colors.Colormap:
    return matplotlib.colors.LinearSegmentedColormap.from_list("shades", ["white", color])


STANDARD_TITLE = "Standard: score = dot product.\nLong vectors win; lake wins nowhere"
HARMONIC_TITLE = f"Harmonic: p ∝ distance$^{{-{EXPONENT}}}$.\nThe nearest center wins"


def draw_heads(path: Path) -> None:
    """One hidden state and five tokens, scored by both heads."""
    figure = Figure(figsize=(10, 4.75), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_head(left, "standard", STANDARD, STANDARD_TITLE)
    draw_head(right, "harmonic", HARMONIC, HARMONIC_TITLE)
    figure.savefig(path, dpi=140)


def draw_idea(path: Path) -> None:
    """The heads in two dimensions on the left; on the right a token of real text, read by two trained models."""
    token = read_png(IMAGES / "explorer_token.png")
    token = token[: round(0.925 * len(token))]  # without the buttons
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    parts = figure.subplot_mosaic([["standard", "token"], ["harmonic", "token"]], width_ratios=[3.9, 6.1])
    draw_head(parts["standard"], "standard", STANDARD, STANDARD_TITLE)
    draw_head(parts["harmonic"], "harmonic", HARMONIC, HARMONIC_TITLE)
    parts["token"].imshow(token, interpolation="lanczos")
    parts["token"].set_title(
        "Two trained models, in the explorer:\nthe likeliest next tokens", fontsize=12, fontweight="bold", loc="left"
    )
    parts["token"].set_axis_off()
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    draw_heads(IMAGES / "distance_or_dot_product.png")
    draw_idea(IMAGES / "idea.png")
