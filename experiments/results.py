"""Scaling, frontier and means of the protocol's runs as Markdown, from the rows that there are.

summary.py puts them into the pages of docs/results.
"""

from fractions import Fraction
from functools import partial
from statistics import mean
from typing import NamedTuple

import numpy as np
from rare_tokens import NAMES
from report import SeedPairs, arm_of, difference, line_at, markdown_table, number_at, paired, settings_of
from verdicts import ARMS, ENOUGH, EXIT, NOT_SHOWN, SEEDS, UNUSED, depth_and_width, spaced


def by_width(rows: list[dict]) -> dict[str, dict[int, SeedPairs]]:
    """What is drawn as a line over the width -> width -> pairs, of the fresh seeds with enough text, where there are
    five: the validation loss of the protocol (P1) and that of text that no choice has seen (P4)."""
    found: dict[str, dict[int, SeedPairs]] = {}
    for path, text in (("val_loss", ""), (UNUSED, ", on unused text")):
        for (question, size, arm), pairs in paired(rows, partial(number_at, path=path)).items():
            if question == ENOUGH and len(pairs) >= SEEDS:
                name = f"{ARMS.get(arm, arm)}{text}"
                found.setdefault(name, {})[int(size.split("x")[1])] = pairs
    return found


def scaling(series: dict[str, dict[int, SeedPairs]], width: int = 768) -> str:
    """Markdown: the mean paired difference of losses as a line over log2(width), for what has three widths or more. A
    width is one point, however many seeds it has: settings were tuned at one width, so that seeds of another err
    alike."""
    lines = []
    for name, widths in series.items():
        if len(widths) < 3:
            continue
        x = np.log2([*widths])
        y = np.array([mean(ours - theirs for _, ours, theirs in pairs) for pairs in widths.values()])
        line = line_at(x, y, np.log2(width))
        slope, at = ("{:+.3f} [{:+.3f}, {:+.3f}]".format(*number) for number in line)
        _, low, high = line.slope
        shrinks = "holds" if high < 0 else "does not hold" if low > 0 else NOT_SHOWN
        lines.append([name, ", ".join(map(str, sorted(widths))), slope, f"**{shrinks}**", at])
    columns = "harmonic - standard | widths | for each doubling of the width [95 %] | S1: this slope is below zero"
    return markdown_table(f"{columns} | extrapolated to {width} [95 %]", lines) if lines else ""


class FrontierPoint(NamedTuple):
    r: float | None  # length of a center over length of a hidden state at the start; None for the standard head
    n: float | None
    runs: list[dict]  # one a seed
    keeps: str  # the geometry, as `keeps_geometry` says
    gap: float  # its mean loss minus the standard head's on the same seeds

    def mean(self, path: str) -> float:
        """Mean over seeds of the number at a dotted path of a row."""
        return mean(value for row in self.runs if (value := number_at(row, path)) is not None)


def frontier_points(rows: list[dict]) -> list[FrontierPoint]:
    """Points of the frontier and the standard head beside them, best loss first; none without the standard head."""
    read = [row for row in rows if row["question"] == "frontier" and "reading" in row]
    standard = {row["seed"]: row for row in read if arm_of(row) == "standard"}
    groups: dict[str, list[dict]] = {}
    for row in read:
        groups.setdefault(f"{arm_of(row)} {settings_of(row)}", []).append(row)
    points = []
    for runs in groups.values():
        if not standard.keys() & {row["seed"] for row in runs}:
            continue  # nothing to hold it against
        chosen = runs[0]["settings"]
        gap = mean(row["val_loss"] - standard[row["seed"]]["val_loss"] for row in runs if row["seed"] in standard)
        if arm_of(runs[0]) == "standard":
            points.append(FrontierPoint(None, None, runs, "-", gap))
        else:
            r = chosen["model.center_std"] / chosen["model.hidden_scale"]
            points.append(FrontierPoint(r, chosen["model.exponent"], runs, keeps_geometry(runs, standard), gap))
    return sorted(points, key=lambda point: point.gap)


def frontier(rows: list[dict]) -> str:
    """Markdown: loss against reading over r and n, best loss first."""
    measures = ("reading.lens_agreement", "reading.label_distance", "reading.own_center")
    lines = []
    for point in frontier_points(rows):
        r, n = ("standard", "-") if point.r is None else (str(Fraction(point.r).limit_denominator(16)), f"{point.n:g}")
        read = [f"{point.mean(path):.3f}" for path in measures]
        lines.append([r, n, str(len(point.runs)), f"{point.gap:+.3f}", *read, point.keeps])
    columns = "r | n | seeds | nats per token - standard's, same seeds | lens agreement | label distance | own center"
    return markdown_table(f"{columns} | reads better", lines) if lines else ""


def keeps_geometry(runs: list[dict], standard: dict[int, dict]) -> str:
    """yes or no: whether a point reads better than the standard head, by lens agreement and label distance, on every
    seed that both have."""
    both = [(row["reading"], standard[row["seed"]]["reading"]) for row in runs if row["seed"] in standard]
    better = [a["lens_agreement"] > b["lens_agreement"] and a["label_distance"] < b["label_distance"] for a, b in both]
    return "yes" if all(better) else "no"


READING_MEANS = (
    ("lens agreement (higher is better)", "reading.lens_agreement"),
    ("the same at all positions (higher)", "reading.layers.agreement.inner"),
    ("agreement of a tuned lens (higher)", "reading.tuned_lens"),
    ("label distance (lower)", "reading.label_distance"),
    ("distance to the label / median distance, centers as they stand", "reading.raw_label_over_median"),
    ("own center, mean reciprocal rank (higher)", "reading.own_center"),
    ("cosine of a center and its mean context (higher)", "reading.center_cosine"),
)
USES_MEANS = (
    ("calibration error (lower)", "uses.calibration.error"),
    ("the same by chance, where confidence is right", "uses.calibration.error_by_chance"),
    ("nats lost by a head in int8 (lower)", "uses.quantized.int8"),
    ("nats lost by a head in int4 (lower)", "uses.quantized.int4"),
    ("early exit at a confidence of 0.9: blocks saved (higher)", "uses.early_exit.2.blocks_saved"),
    ("the same: how often those that leave say what the whole model says", "uses.early_exit.2.agreement_of_those"),
    ("early exit at an agreement of 0.95: blocks saved (higher)", EXIT),
    ("the same: agreement on the text that is read", "uses.exit_at_agreement.agreement_of_those"),
    ("nats for each occurrence of a token placed from 1 context (lower)", "uses.new_token.0.best.cost"),
    ("from 4 contexts (lower)", "uses.new_token.1.best.cost"),
    ("from 16 contexts (lower)", "uses.new_token.2.best.cost"),
)


RATE_MEANS = (("nats lost at three times the learning rate (lower)", "lost_at_three_times"),)
FREQUENCY_MEANS = (
    *((f"nats per target that occurs {name}", f"measured.rare.losses.{i}") for i, name in enumerate(NAMES)),
    ("1 to 99 times", "measured.rare.loss"),
    ("of these, for which one it is", "measured.rare.which"),
    ("the same after the best bias by frequency and temperature", "measured.rare.which_after_fit"),
    ("for which one it is, of all other targets", "measured.rare.which_other"),
    ("nats per token for whether one of 1 to 99 times comes", "measured.rare.when"),
    ("probability of all tokens of 1 to 99 times", "measured.rare.mass"),
    ("nats per token of the whole of this text", UNUSED),
)
SHARP_MEANS = (  # what r = 1/4 gives up, and for what
    ("nats per token (lower)", "val_loss"),
    ("the same on text that no choice has seen (lower)", UNUSED),
    *(one for one in READING_MEANS if one[1] in ("reading.lens_agreement", "reading.label_distance")),
)
EPS_MEANS = (  # what is told of one eps for both heads
    ("nats per token", "val_loss"),
    ("the same on text that no choice has seen", UNUSED),
    ("nats per target that occurs 1 to 99 times", "measured.rare.loss"),
    (
        "of these, for which one it is, after the best bias and temperature",
        "measured.rare.which_after_fit",
    ),
)


def differences(
    rows: list[dict],
    measures: tuple[tuple[str, str], ...],
    arm: str,
    question: str = ENOUGH,
    names: str = "",
    baseline: str = "standard",
) -> str:
    """Markdown: of each measure (its text, its path) at every size the means over the fresh seeds of the arm and of
    the baseline, and their difference with its interval. names: of the two, where they are other ones."""
    table: dict[str, dict[str, str]] = {}
    for text, path in measures:
        for (asked, size, name), pairs in paired(rows, partial(number_at, path=path), baseline).items():
            if (asked, name) == (question, arm):
                ours, theirs = (mean(one[i] for one in pairs) for i in (1, 2))
                few = f" ({len(pairs)} seeds)" if len(pairs) < SEEDS else ""
                table.setdefault(text, {})[size] = f"{ours:.3f}, {theirs:.3f}: {difference(pairs)}{few}"
    sizes = sorted({size for cells in table.values() for size in cells}, key=depth_and_width)
    named = " | ".join(spaced(size) for size in sizes)
    columns = f"{names or f'{ARMS[arm]}, {ARMS[baseline]}'}: difference [95 %] | {named}"
    return (
        markdown_table(columns, [[text, *(cells.get(size, "") for size in sizes)] for text, cells in table.items()])
        if table
        else ""
    )
