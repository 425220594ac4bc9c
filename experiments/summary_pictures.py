"""The pictures of docs/results/{prediction,reading,heads}.md, from the same numbers as their tables.

python experiments/summary_pictures.py      # writes prediction_*, frontier, lens_agreement_protocol, rare_words ...
"""

import argparse
from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import heads_report
import lengths
import measured
import numpy as np
import results
import trade
import verdicts
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rare_tokens import NAMES
from report import SeedPairs, arm_of, by_setting, interval, number_at, own_settings, paired

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS, subplots
from harmonic_gpt.evaluation.comparison.result_figures import forest

IMAGES = measured.ROOT / "docs/images"
BLUE, ORANGE = HEAD_COLORS["harmonic"], HEAD_COLORS["standard"]
COLORS = {"harmonic": "#08519c", "quarter": BLUE, "eighth": "#7fb8e6", "standard": ORANGE}  # of the protocol's arms
MARKERS = {"r = 1": "s", "r = 1/4": "o", "r = 1/8": "D"}
ARMS = {arm: (f"harmonic, {name}" if arm != "standard" else name, COLORS[arm]) for arm, name in verdicts.ARMS.items()}
# Questions of protocol.yaml, what each is about, and the tokens of an epoch (PROTOCOL.md)
SCARCE = {
    "scarce text, 4 epochs": ("a sixteenth of the text", 0.234e6),
    "scarce text, 16 epochs": ("a sixty-fourth", 0.057e6),
}
EDGE = 6  # halves of intervals, of draw_verdicts


def draw_sizes(path: Path, rows: list[dict]) -> None:
    """Difference to the standard head by size, with 95 % intervals over five seeds: filled against it at its best,
    hollow where both heads have one eps."""
    figure, ((axes,),) = subplots(1, 1, 7, 4)
    axes.grid(color="0.92")
    sizes = sorted({row["size"] for row in rows if row["question"] == verdicts.ENOUGH}, key=verdicts.depth_and_width)
    held: dict[tuple[str, bool], dict[str, SeedPairs]] = {}
    for best, of in ((True, verdicts.against_best(rows)), (False, rows)):
        for (question, size, arm), pairs in sorted(paired(of).items()):
            if question == verdicts.ENOUGH and len(pairs) >= verdicts.SEEDS and (best or arm == verdicts.TUNED):
                held.setdefault((arm, best), {})[size] = pairs
    for i, ((arm, best), points) in enumerate(held.items()):
        places = [sizes.index(size) + 0.12 * (i - (len(held) - 1) / 2) for size in points]
        gaps = np.array([mean(a - b for _, a, b in pairs) for pairs in points.values()])
        bars = np.abs(np.array([interval(pairs) for pairs in points.values()]).T - gaps)
        color, marker = COLORS.get(arm, BLUE), MARKERS.get(verdicts.ARMS.get(arm, arm), "o")
        name = f"harmonic, {verdicts.ARMS.get(arm, arm)}" + ("" if best else ", one eps for both heads")
        fill = color if best else "white"
        axes.errorbar(places, gaps, bars, fmt=marker, color=color, mfc=fill, ms=8, lw=2, label=name)
    axes.axhline(0, color=ORANGE, lw=2, label="standard")
    axes.set_xticks(range(len(sizes)), [verdicts.spaced(size) for size in sizes])
    axes.set(xlabel="depth x width", ylabel="loss minus the standard head's,\nnats per token")
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=9)
    figure.savefig(path, dpi=150)


class Curves(NamedTuple):
    label: str
    color: str
    style: str
    points: list[list[list[float]]]  # of each seed, [tokens, loss] along training


def draw_scarce(path: Path, drawn: dict[str, list[Curves]]) -> None:
    """Loss along training with little text, a panel for each share of it: means and ranges over seeds."""
    figure, (panels,) = subplots(1, len(drawn), 1 + 4 * len(drawn), 4.6)
    handles = {}
    for axes, (question, curves_of) in zip(panels, drawn.items(), strict=True):
        name, epoch = SCARCE[question]
        for label, color, style, curves in curves_of:
            epochs = [tokens / epoch for tokens, _ in curves[0]]
            losses = list(zip(*[[loss for _, loss in curve] for curve in curves], strict=True))
            (handles[label],) = axes.plot(epochs, [mean(at) for at in losses], style, color=color, lw=2)
            low, high = map(min, losses), map(max, losses)
            axes.fill_between(epochs, [*low], [*high], color=color, alpha=0.25, lw=0)
        every = [loss for one in curves_of for curve in one.points for _, loss in curve]
        limits = min(every) - 0.06, min(min(every) + 0.75, max(every) + 0.06)
        axes.set(title=name, xlabel=f"epochs over {epoch / 1e6:.2f} M tokens", ylim=limits)
        axes.grid(color="0.92")
    panels[0].set_ylabel("validation loss, nats per token")
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9, handlelength=4
    )
    figure.savefig(path, dpi=150)


def scarce_curves(protocol: list[dict], size: str = "2x128") -> dict[str, list[Curves]]:
    """Both heads without weight decay (the archive's first lines), and the protocol's arms with what was found; the
    questions that have a run."""
    drawn: dict[str, list[Curves]] = {}
    for head in HEAD_COLORS:
        curves, (name, color) = [row["curve"] for row in plain_scarce_rows() if row["head"] == head], ARMS[head]
        style = f"{MARKERS.get(verdicts.ARMS[head], 'o')}:"
        drawn.setdefault(next(iter(SCARCE)), []).append(Curves(f"{name}, no weight decay", color, style, curves))
    asked = [(question, question, "-", "weight decay") for question in SCARCE]
    asked += [(panel, question, "--", "gain fixed") for panel, question in verdicts.FIXED_GAIN.items()]
    for panel, question, line, what in asked:
        for arm, (name, color) in ARMS.items():
            runs = [row for row in protocol if (row["question"], row["size"], arm_of(row)) == (question, size, arm)]
            if settings := by_setting(runs).values():  # of several the one with most seeds, like `paired`
                curves = [row["curve"] for row in max(settings, key=len)]
                style = f"{MARKERS.get(verdicts.ARMS[arm], 'o')}{line}"
                drawn.setdefault(panel, []).append(Curves(f"{name}, {what}", color, style, curves))
    return drawn


def plain_scarce_rows() -> list[dict]:
    """The runs of the archive's table on a sixteenth of the text, without the seed on which r was chosen."""
    found = []
    for row in measured.rows_of("recipe.jsonl"):
        chosen, trial = own_settings(row)
        plain = {"optim.head_lr_scale": 2.0, "data.dir": "prose8k-16"}.items() <= chosen.items() and not trial
        other = {"model.dropout", "train.label_smoothing", "model.hidden_scale"} & chosen.keys()
        if row["question"] == measured.SCARCE and plain and not other and row["seed"]:
            found.append(row)
    return found


def draw_frontier(path: Path, points: list[results.FrontierPoint]) -> None:
    """Loss against lens agreement and against label distance: a color for each r, the standard head beside."""
    figure, (panels,) = subplots(1, 2, 9, 4.2, sharey=True)
    measures = ("reading.lens_agreement", "reading.label_distance")
    names = ("lens agreement  (right: easier to read)", "label distance  (left: easier to read)")
    ours = sorted({point.r for point in points if point.r is not None}, reverse=True)
    shades = dict(zip(ours, colormaps["Blues"](np.linspace(1, 0.35, len(ours))), strict=True))
    for axes, path_in_row, name in zip(panels, measures, names, strict=True):
        for (r, shade), shape in zip(shades.items(), "vs^oD", strict=False):
            mine = [point for point in points if point.r == r]
            x, y = [point.mean(path_in_row) for point in mine], [point.gap for point in mine]
            axes.plot(x, y, shape, color=shade, ms=8, label=f"harmonic, r = {Fraction(r).limit_denominator(16)}")
        for point in points:
            if point.r is None:
                x, y = point.mean(path_in_row), point.gap
                axes.plot(x, y, "s", color=ORANGE, ms=9, label="standard")
                axes.axhline(y, color=ORANGE, lw=1, ls=":")
                axes.axvline(x, color=ORANGE, lw=1, ls=":")
        axes.set_xlabel(name)
        axes.grid(color="0.92")
    panels[0].set_ylabel("loss minus the standard head's,\nsame seeds, nats per token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _legend(figure: Figure, panels: Iterable[Axes], ncols: int) -> None:
    """Above the panels, each name once."""
    named = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    handles = {label: handle for lines in named for handle, label in lines}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=ncols, frameon=False)


def draw_rare(path: Path, rows: list[dict]) -> None:
    """Difference to the standard head by how often the target occurs in the corpus: a panel for each arm, a color for
    each size. Classes with few targets are left out: they would set the scale."""
    held: dict[str, dict[str, dict[int, SeedPairs]]] = {}
    for i in range(NAMES.index("10 to 99"), len(NAMES)):
        loss = partial(number_at, path=f"measured.rare.losses.{i}")
        for (question, size, arm), pairs in paired(rows, loss).items():
            if question == verdicts.ENOUGH and len(pairs) >= 3:
                held.setdefault(arm, {}).setdefault(size, {})[i] = pairs
    arms = [arm for arm in verdicts.TOLD if arm in held]
    if not arms:
        return
    sizes = sorted({size for arm in arms for size in held[arm]}, key=verdicts.depth_and_width)
    shades = dict(zip(sizes, colormaps["Blues"](np.linspace(0.4, 1, len(sizes))), strict=True))
    figure, (panels,) = subplots(1, len(arms), 1.5 + 4.5 * len(arms), 4, sharey=True)
    for axes, arm in zip(panels, arms, strict=True):
        classes = sorted({i for found in held[arm].values() for i in found})
        for size, found in sorted(held[arm].items(), key=lambda one: sizes.index(one[0])):
            places = [classes.index(i) + 0.14 * (sizes.index(size) - (len(sizes) - 1) / 2) for i in found]
            gaps = np.array([mean(ours - theirs for _, ours, theirs in pairs) for pairs in found.values()])
            bars = np.abs(np.array([interval(pairs) for pairs in found.values()]).T - gaps)
            look = {"color": shades[size], "ms": 6, "lw": 2, "capsize": 3, "label": verdicts.spaced(size)}
            axes.errorbar(places, gaps, bars, fmt="o", **look)
        axes.axhline(0, color=ORANGE, lw=2, label="standard")
        axes.set_xticks(range(len(classes)), [NAMES[i] for i in classes], fontsize=8)
        axes.set(title=verdicts.ARMS[arm], xlabel="occurrences of the target in the corpus")
        axes.grid(color="0.92")
    panels[0].set_ylabel("loss minus the standard head's,\nnats per target")
    _legend(figure, panels, ncols=5)
    figure.savefig(path, dpi=150)


def draw_verdicts(path: Path, rows: list[dict]) -> None:
    """Every hypothesis, a panel for each arm: its differences at all sizes, in halves of their 95 % intervals. Right of
    zero harmonic is better; beyond 1 the interval leaves out zero; what lies beyond EDGE is drawn there."""
    found = [one for one in verdicts.outcomes(rows) if len(one.pairs) >= verdicts.SEEDS]
    if not found:
        return
    asked = [one for one in verdicts.HYPOTHESES if any(other.hypothesis == one for other in found)]
    sizes = sorted({one.size for one in found}, key=verdicts.depth_and_width)
    shades = dict(zip(sizes, colormaps["viridis_r"](np.linspace(0.1, 0.9, len(sizes))), strict=True))
    arms = [arm for arm in verdicts.TOLD if any(one.arm == arm for one in found)]
    figure, (panels,) = subplots(1, len(arms), 4.5 + 3.8 * len(arms), 1.4 + 0.36 * len(asked), sharey=True)
    for axes, arm in zip(panels, arms, strict=True):
        axes.axvspan(-EDGE - 0.3, -1, color=ORANGE, alpha=0.12, lw=0)
        axes.axvspan(1, EDGE + 0.3, color=BLUE, alpha=0.12, lw=0)
        axes.axvline(0, color="0.5", lw=1)
        axes.set(title=verdicts.ARMS[arm], xlim=(-EDGE - 0.3, EDGE + 0.3))
        axes.set_xlabel("standard is better  |  harmonic is better\ndifference / half of its 95 % interval", fontsize=9)
    for one in found:
        axes = panels[arms.index(one.arm)]
        low, high = interval(one.pairs) or (0.0, 0.0)
        sign = 1 if one.hypothesis.higher_is_better else -1
        halves = sign * (low + high) / max(high - low, 1e-12)
        place = asked.index(one.hypothesis) + 0.16 * (sizes.index(one.size) - (len(sizes) - 1) / 2)
        shape = "o" if abs(halves) <= EDGE else "<>"[halves > 0]
        axes.plot(np.clip(halves, -EDGE, EDGE), place, shape, color=shades[one.size], ms=7)
    panels[0].set_yticks(range(len(asked)), [f"{one.label}  {one.name}" for one in asked], fontsize=9)
    panels[0].set_ylim(len(asked) - 0.5, -0.5)
    empty = {size: panels[0].plot([], [], "o", color=shade)[0] for size, shade in shades.items()}
    names = map(verdicts.spaced, empty)
    figure.legend(empty.values(), names, loc="outside upper center", ncols=len(sizes), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


LENSES = (("context_agreement", "logit lens", "-"), ("tuned_context_agreement", "tuned lens", "--"))


def draw_lens(path: Path, rows: list[dict]) -> None:
    """Lens agreement by layer of each arm beside standard, a panel for each size: mean over seeds, bars from the least
    to the largest."""
    held: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        if "reading" in row and row["question"] == verdicts.ENOUGH:
            held.setdefault(row["size"], {}).setdefault(row["arm"], []).append(row["reading"]["layers"])
    enough = {size: {arm for arm, seeds in found.items() if len(seeds) >= 3} for size, found in held.items()}
    sizes = [size for size in sorted(held, key=verdicts.depth_and_width) if "standard" in enough[size]]
    arms = [arm for arm in verdicts.TOLD if any(arm in enough[size] for size in sizes)]
    if not arms:
        return
    figure, grid = subplots(len(arms), len(sizes), 1 + 2.8 * len(sizes), 0.8 + 2.7 * len(arms), sharey=True)
    for axes, (ours, size) in zip(grid.flat, product(arms, sizes), strict=True):
        if ours not in enough[size]:
            axes.remove()
            continue
        for arm in (ours, "standard"):
            seeds, (name, color) = held[size][arm], ARMS[arm]
            for key, lens, style in LENSES:
                values = np.array([layers[key] for layers in seeds])  # (seeds, layers)
                middle = values.mean(0)
                bars = np.maximum(0, [middle - values.min(0), values.max(0) - middle])  # rounding may leave -1e-17
                look = {"color": color, "ls": style, "marker": "o", "ms": 4, "capsize": 2}
                axes.errorbar(range(len(middle)), middle, bars, label=f"{name}, {lens}", **look)
        axes.set(title=f"{verdicts.spaced(size)}, {len(held[size][ours])} seeds", ylim=(0, 1))
        axes.locator_params(axis="x", integer=True)
        axes.grid(color="0.92")
    for axes in grid[-1]:
        axes.set_xlabel("layer (0: embeddings)")
    for axes in grid[:, 0]:
        axes.set_ylabel("agreement with the output")
    _legend(figure, grid.flat, ncols=3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures (default: %(default)s)")
    folder = parser.parse_args().out
    protocol = list(measured.rows_of("protocol.jsonl"))
    compared = verdicts.against_best(protocol)
    draw_sizes(folder / "prediction_sizes.png", protocol)
    draw_scarce(folder / "prediction_scarce.png", scarce_curves(protocol))
    draw_lens(folder / "lens_agreement_protocol.png", compared)
    draw_verdicts(folder / "verdicts.png", compared)
    draw_rare(folder / "rare_words.png", compared)
    if trade.points(protocol):
        trade.draw(folder / "rare_trade.png", protocol)
    if points := results.frontier_points(protocol):
        draw_frontier(folder / "frontier.png", points)
    first = next(iter(measured.compared().values()))
    if figure := forest(first, {head: HEAD_COLORS[head] for head in ("harmonic", "standard")}):
        figure.savefig(folder / "forest_protocol.png", dpi=150)
    if lengths.grown(protocol):
        lengths.draw_growth(folder / "growth.png", protocol)
    rows = list(measured.rows_of("heads.jsonl"))
    heads_report.draw(rows, heads_report.searches(rows), folder / "heads.png")


if __name__ == "__main__":
    main()
