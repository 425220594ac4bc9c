"""The pictures of docs/results/{prediction,heads}.md, from the same numbers as their tables.

python experiments/summary_pictures.py      # writes docs/images/prediction_*.png and heads.png
"""

from pathlib import Path
from statistics import mean

import heads_report
import measured
from matplotlib.figure import Figure
from report import SeedPairs, interval, own_settings, paired

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS

IMAGES = measured.ROOT / "docs/images"
BLUE, ORANGE = HEAD_COLORS["harmonic"], HEAD_COLORS["standard"]
EPOCH = 0.234e6  # tokens of the sixteenth of the corpus (PROTOCOL.md: 819,200 tokens are 3.5 epochs)


def _axes(width: float = 7.0, height: float = 4.0):
    """A figure that is read at 700 pixels, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_r(path: Path, sweep: dict[float, dict[float, float]], standard: dict[str, float]) -> None:
    """Loss against r, with n at equal spread and at the best n, beside the standard head's two rates."""
    figure, axes = _axes()
    for inverse, points in sweep.items():
        axes.plot([inverse] * len(points), list(points.values()), "o", color=BLUE, mfc="white", ms=6)
    best = {inverse: min(points.values()) for inverse, points in sweep.items()}
    axes.plot(list(best), list(best.values()), "o-", color=BLUE, ms=7, lw=2, label="harmonic: best n (hollow: other n)")
    for (name, loss), style in zip(standard.items(), ("--", "-"), strict=True):
        axes.axhline(loss, color=ORANGE, ls=style, lw=2, label=f"standard, rate of the head {name}")
    axes.set_xscale("log")
    axes.set_xticks(list(sweep), [measured.R_NAMES[inverse] for inverse in sweep])
    axes.minorticks_off()
    axes.set_xlabel("r: length of a center / length of a hidden state at the start  (right: dot product)")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_sizes(path: Path, by_size: dict[str, dict[str, SeedPairs]], protocol: list[dict]) -> None:
    """Difference to the standard head by size, with 95 % intervals over seeds; the protocol's where it has pairs."""
    figure, axes = _axes()
    sizes = list(by_size)
    names = {"1": "r = 1, as in the paper, three seeds", "1/4": "r = 1/4, three seeds"}
    series = {name: {size: arms[r] for size, arms in by_size.items()} for r, name in names.items()}
    for (question, size, arm), pairs in paired(protocol).items():
        if question == "enough text" and size in sizes and len(pairs) > 1:
            name = heads_report.name_of(arm).removeprefix("harmonic, ")
            series.setdefault(f"{name}, protocol", {})[size] = pairs
    for i, (label, points) in enumerate(series.items()):
        places = [sizes.index(size) + 0.12 * (i - (len(series) - 1) / 2) for size in points]
        gaps = [mean(a - b for _, a, b in pairs) for pairs in points.values()]
        limits = [interval(pairs) or (0.0, 0.0) for pairs in points.values()]
        bars = [[gap - low for gap, (low, _) in zip(gaps, limits, strict=True)]]
        bars += [[high - gap for gap, (_, high) in zip(gaps, limits, strict=True)]]
        marker = "osD^v"[i % 5]
        fill = "white" if label.startswith("r = 1,") else BLUE
        axes.errorbar(places, gaps, bars, fmt=marker, color=BLUE, mfc=fill, ms=8, lw=2, label=f"harmonic, {label}")
    axes.axhline(0, color=ORANGE, lw=2, label="standard")
    axes.set_xticks(range(len(sizes)), [size.replace("x", " x ") for size in sizes])
    axes.set(xlabel="depth x width", ylabel="loss minus the standard head's,\nnats per token")
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=9)
    figure.savefig(path)


def draw_scarce(path: Path, rows: list[dict]) -> None:
    """Loss along training on a sixteenth of the text: means and ranges over seeds, no weight decay."""
    figure, axes = _axes()
    for head, color in HEAD_COLORS.items():
        curves = [row["curve"] for row in rows if row["head"] == head]
        epochs = [tokens / EPOCH for tokens, _ in curves[0]]
        losses = list(zip(*[[loss for _, loss in curve] for curve in curves], strict=True))
        axes.plot(epochs, [mean(at) for at in losses], "o-", color=color, lw=2, label=_scarce_label(head, len(curves)))
        axes.fill_between(epochs, [min(at) for at in losses], [max(at) for at in losses], color=color, alpha=0.25)
    axes.set(xlabel="epochs over 0.23 M tokens, one schedule of 400 steps", ylabel="validation loss, nats per token")
    axes.set_ylim(5.45, 6.4)
    axes.legend(frameon=False)
    figure.savefig(path)


def _scarce_label(head: str, seeds: int) -> str:
    return f"{head}{', r = 1' if head == 'harmonic' else ''}, no weight decay ({seeds} seeds)"


def scarce_rows() -> list[dict]:
    """The runs of measured.scarce's first line."""
    found = []
    for row in measured.rows_of("recipe.jsonl"):
        chosen, trial = own_settings(row)
        plain = {"optim.head_lr_scale": 2.0, "data.dir": "prose8k-16"}.items() <= chosen.items() and not trial
        other = {"model.dropout", "train.label_smoothing", "model.hidden_scale"} & chosen.keys()
        if row["question"] == measured.SCARCE and plain and not other:
            found.append(row)
    return found


def main(folder: Path = IMAGES) -> None:
    draw_r(folder / "prediction_r.png", measured.over_r(), measured.standard_over_r())
    draw_sizes(folder / "prediction_sizes.png", measured.by_size(), list(measured.rows_of("protocol.jsonl")))
    draw_scarce(folder / "prediction_scarce.png", scarce_rows())
    rows = list(measured.rows_of("heads.jsonl"))
    heads_report.draw(rows, heads_report.searches(rows), folder / "heads.png")


if __name__ == "__main__":
    main()
