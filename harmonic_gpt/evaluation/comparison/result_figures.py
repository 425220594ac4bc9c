"""Figures of reading that need results.json and nothing else: of a report, and of the docs."""

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harmonic_gpt.evaluation.comparison.canvas import LAYER, entries, legend, panels, plain, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDECIDED = "0.55"  # grey
LENSES = (("context_agreement", "logit lens", "-"), ("tuned_context_agreement", "tuned lens", "--"))


class Read(NamedTuple):
    """One model in a figure: the color and name of its arm, and its rows of one measure."""

    color: str
    arm: str
    rows: list[dict]


def forest(comparison: dict, colors: dict[str, str]) -> "Figure | None":
    """Every measure but the loss as a row, a panel for each two arms: their difference with its 95 % interval.

    Differences are divided by half the width of their interval, so that one axis holds all, and turned so that right is
    always the first arm's side. Where an interval leaves out 0, it has the color of the arm that is ahead, else it is
    grey. A measure without an interval (probes of single runs) has its numbers and no point.

    Args:
        comparison: of results.json. colors: {arm: color}.
    """
    keys = [key for key in comparison.get("headlines", ()) if key != "nats"]
    measured = [
        pair
        for pair in comparison.get("differences", ())
        if any(pair["headlines"][key]["difference"] is not None for key in keys)
    ]
    if not measured:
        return None
    size = 9, len(measured) * (0.36 * len(keys) + 1.3)
    figure, grid = subplots(len(measured), 2, *size, width_ratios=(1, 1.05))
    for (axes, table), pair in zip(grid, measured, strict=True):
        _forest_panel(axes, table, comparison["headlines"], keys, pair, colors)
    return figure


def _forest_panel(axes: Any, table: Any, headlines: dict, keys: list[str], pair: dict, colors: dict[str, str]) -> None:
    """Points and intervals into `axes`, their numbers into `table` beside it, a line a measure."""
    arms = pair["first"], pair["second"]
    reach = 2.5
    for place, key in enumerate(keys):
        headline, row = headlines[key], pair["headlines"][key]
        cells = [headline["arms"][arm] for arm in arms]
        _line(table, place, [f"{cell['mean']:.3f}" if cell else "-" for cell in cells], _told(row))
        if row["interval"] is None or row["interval"][0] == row["interval"][1]:
            continue
        half = (row["interval"][1] - row["interval"][0]) / 2 * (1 if headline["higher_is_better"] else -1)
        at = row["difference"] / half
        low, high = sorted(end / half for end in row["interval"])
        look = {"color": colors[row["better"]] if row["better"] else UNDECIDED, "marker": "o", "capsize": 3}
        axes.errorbar(at, place, xerr=[[at - low], [high - at]], linewidth=2, **look)
        reach = max(reach, abs(at) + 1.4)
    axes.axvline(0, color="black", linewidth=0.8)
    labels = [f"{headlines[key]['name']} {'↑' if headlines[key]['higher_is_better'] else '↓'}" for key in keys]
    axes.set(yticks=range(len(keys)), yticklabels=labels, ylim=(len(keys) - 0.5, -0.5), xlim=(-reach, reach))
    axes.set_xlabel("difference / half the width of its 95 % interval", fontsize=9)
    axes.grid(axis="x", alpha=0.25)
    for x, side, arm, sign in (0, "left", arms[1], "← {}"), (1, "right", arms[0], "{} →"):
        text = "\n".join(textwrap.wrap(f"{plain(arm)} ahead", 16))
        axes.text(x, 1.02, sign.format(text), transform=axes.transAxes, ha=side, fontsize=9, color=colors[arm])
    table.set(ylim=axes.get_ylim(), xticks=[], yticks=[])
    table.spines[:].set_visible(False)
    names = ["\n".join(textwrap.wrap(plain(arm), 12)) for arm in arms]
    _line(table, -0.65, names, "difference\n[95 % interval]", va="bottom", color="0.3", fontsize=9)


def _line(table: Any, place: float, cells: list[str], last: str, **look: Any) -> None:
    """A line of a table in axes: cells flush right, the last one flush left."""
    options = {"va": "center", "transform": table.get_yaxis_transform(), "fontsize": 10} | look
    for x, text in zip((0.2, 0.44), cells, strict=True):
        table.text(x, place, text, ha="right", **options)
    table.text(0.5, place, last, ha="left", **options)


def _told(row: dict) -> str:
    if row["difference"] is None:
        return "not measured"
    interval = row["interval"]
    return f"{row['difference']:+.3f} " + (f"[{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "(no interval)")


def lens_agreement(held: dict[str, list[Read]]) -> "Figure | None":
    """Lens agreement by layer, a panel for each title: solid raw, dashed tuned, bars the interval where there is one.

    Rows are those of results.json: {"layer", "context_agreement", "context_agreement_interval", "tuned_..."}.
    """
    if not any(read.rows for reads in held.values() for read in reads):
        return None
    figure, grid = panels(len(held), max(7, 4.2 * len(held)), 4.2)
    for axes, (title, reads) in zip(grid, held.items(), strict=True):
        for color, arm, rows in reads:
            for key, name, style in LENSES:
                points = [(r["layer"], r[key], r.get(f"{key}_interval") or [r[key]] * 2) for r in rows if key in r]
                if points:
                    layers, values, intervals = zip(*points, strict=True)
                    bars = np.abs(np.array(intervals).T - values)
                    look = {"color": color, "linestyle": style, "marker": "o", "markersize": 4, "capsize": 2}
                    axes.errorbar(layers, values, bars, label=f"{arm}, {name}", **look)
        axes.set(xlabel=LAYER, ylabel="agreement with the output", ylim=(0, 1), title=title)
        axes.locator_params(axis="x", integer=True)
    legend(grid[0], loc="lower right")
    return figure


def paper_losses(held: list[Read]) -> "Figure | None":
    """Mean loss of the paper's protocol by task, real pairs (filled) above the same words paired at random (hollow):
    the control stands beside the measure.

    Rows are those of results.json: {"task", "protocol", "loss", "shuffled_loss"}; other protocols are left out.
    """
    kept = [Read(r.color, r.arm, [row for row in r.rows if _of_the_paper(row)]) for r in held]
    tasks = sorted({row["task"] for read in kept for row in read.rows})
    if not tasks:
        return None
    figure, [axes] = panels(1, 8, 0.42 * len(tasks) + 1.4)
    arms = list(dict.fromkeys(read.arm for read in kept))
    for color, arm, rows in kept:
        offset = 0.26 * (arms.index(arm) - (len(arms) - 1) / 2)
        places = [tasks.index(row["task"]) + offset for row in rows]
        real, shuffled = ([row[key] for row in rows] for key in ("loss", "shuffled_loss"))
        axes.hlines(places, real, shuffled, color=color, linewidth=1)
        for values, name, face in ((real, "pairs of the task", color), (shuffled, "paired at random", "white")):
            axes.plot(values, places, "o", color=color, markerfacecolor=face, markersize=6, label=f"{arm}, {name}")
    axes.set(yticks=range(len(tasks)), yticklabels=[plain(task) for task in tasks], ylim=(len(tasks) - 0.5, -0.5))
    axes.set(xlim=(0, None), xlabel="mean parallelogram loss, equation 3, in two principal components")
    shown = entries(axes)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def _of_the_paper(row: dict) -> bool:
    return row["protocol"] == "paper" and row["loss"] is not None
