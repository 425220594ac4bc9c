"""The protocol's verdicts, frontier and scaling as Markdown, from the rows that there are.

summary.py puts them into the pages of docs/results. What has no row is not mentioned; what has too few says so.
PROTOCOL.md has hypotheses and rules.
"""

from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from rare_tokens import NAMES
from report import SeedPairs, arm_of, difference, interval, line_at, markdown_table, paired, settings_of
from scipy import stats

QUEUE = Path(__file__).with_name("protocol.yaml")
UNUSED = "measured.rare.all"  # loss on text that no choice has seen
EXIT = "uses.exit_at_agreement.blocks_saved"
ENOUGH, THRICE = "enough text", "three times the rate"  # questions of protocol.yaml
# Arms at the eps that suits them; all other runs have 1e-5, which suits r = 1/4
BETTER_EPS = {"standard": "standard with eps 1e-8", "harmonic": "r = 1 with eps 1e-6"}
FOR_RARE = "standard for rare tokens"  # of its settings the one that knows them best
SEEDS = 5  # pairs of a verdict
LEVEL = 0.01  # nats per token: a difference of loss that is none
# Arms of protocol.yaml, as the pages call them
ARMS = {"harmonic": "r = 1", "quarter": "r = 1/4", "eighth": "r = 1/8", "standard": "standard"}
TOLD = ("harmonic", "quarter")  # those that have every measure
TUNED = "quarter"  # the one that was tuned as long as the standard head, with little text and for rare tokens too
# A verdict, said of the harmonic head
WORDS = {"holds": "ahead", "does not hold": "behind"}
NOT_SHOWN = "no difference shown"
ORDER = ("does not hold", "level", NOT_SHOWN, "undecided", "holds")  # negative results first


class Hypothesis(NamedTuple):
    name: str
    text: str
    question: str  # of protocol.yaml
    measure: str  # where the number stands in a row, as a dotted path
    higher_is_better: bool = False


HYPOTHESES = (
    Hypothesis("P1", "predicts better with enough text", ENOUGH, "val_loss"),
    Hypothesis("P4", "predicts better on text that no choice has seen", ENOUGH, UNUSED),
    Hypothesis("P2", "predicts better with a sixteenth of the text, 3.5 epochs", "scarce text, 4 epochs", "val_loss"),
    Hypothesis("P3", "predicts better with a sixty-fourth, at most 14 epochs", "scarce text, 16 epochs", "val_loss"),
    Hypothesis("R1", "higher lens agreement", ENOUGH, "reading.lens_agreement", True),
    Hypothesis("R2", "higher agreement of a tuned lens", ENOUGH, "reading.tuned_lens", True),
    Hypothesis("R3", "lower label distance", ENOUGH, "reading.label_distance"),
    Hypothesis("R4", "higher own center", ENOUGH, "reading.own_center", True),
    Hypothesis("S2", "loses less at three times the learning rate", THRICE, "lost_at_three_times"),
    Hypothesis("U1", "lower calibration error, without temperature", ENOUGH, "uses.calibration.error"),
    Hypothesis("U2", "loses less by a head in int4", ENOUGH, "uses.quantized.int4"),
    Hypothesis("U3", "early exit at 0.9 saves more blocks", ENOUGH, "uses.early_exit.2.blocks_saved", True),
    Hypothesis("U4", "tokens added from 16 contexts cost less", ENOUGH, "uses.new_token.2.best.cost"),
    Hypothesis("U6", "early exit at an agreement of 0.95 saves more blocks", ENOUGH, EXIT, True),
    Hypothesis("U5", "predicts rare tokens better", ENOUGH, "measured.rare.loss"),
    Hypothesis("U8", "knows better whether a rare token comes", ENOUGH, "measured.rare.when"),
    Hypothesis("U7", "knows better which rare token comes", ENOUGH, "measured.rare.which"),
    Hypothesis("U9", "the same after the best bias and temperature", ENOUGH, "measured.rare.which_after_fit"),
    Hypothesis("U10", "U9 against the standard setting for rare tokens", FOR_RARE, "measured.rare.which_after_fit"),
)


def verdict(hypothesis: Hypothesis, pairs: list[tuple[int, float, float]]) -> str:
    """By PROTOCOL.md's rule: holds, does not hold, level or NOT_SHOWN; undecided with too few seeds."""
    limits = interval(pairs)
    if len(pairs) < SEEDS or limits is None:
        return "undecided"
    low, high = limits if hypothesis.higher_is_better else (-limits[1], -limits[0])  # positive: for harmonic
    if hypothesis.name[0] == "P" and max(abs(low), abs(high)) < LEVEL:
        return "level"
    return "holds" if low > 0 else "does not hold" if high < 0 else NOT_SHOWN


class Outcome(NamedTuple):
    hypothesis: Hypothesis
    arm: str
    size: str  # depth x width
    pairs: SeedPairs
    verdict: str


def outcomes(rows: list[dict]) -> list[Outcome]:
    """Of every hypothesis, arm and size that has a pair of seeds, the smallest size first. rows: of `against_best`."""
    found = []
    for hypothesis in HYPOTHESES:
        for (question, size, arm), pairs in paired(rows, partial(number_at, path=hypothesis.measure)).items():
            if question == hypothesis.question:
                found.append(Outcome(hypothesis, arm, size.split()[0], pairs, verdict(hypothesis, pairs)))
    return sorted(found, key=lambda one: (HYPOTHESES.index(one.hypothesis), depth_and_width(one.size)))


def depth_and_width(size: str) -> list[int]:
    return [int(part) for part in size.split("x")]


def with_loss_at_three_times(rows: list[dict]) -> list[dict]:
    """Runs at three times the rate get what they lose against the same arm, size and seed at its own rate."""
    own = {(row["size"], arm_of(row), row["seed"]): row["val_loss"] for row in rows if row["question"] == ENOUGH}
    return [
        row | {"lost_at_three_times": row["val_loss"] - own[at]}
        if row["question"] == THRICE and (at := (row["size"], arm_of(row), row["seed"])) in own
        else row
        for row in rows
    ]


def against_best(rows: list[dict]) -> list[dict]:
    """The rows as verdicts compare them: a run that was repeated for its reading once, and each arm with the eps that
    suits it, at the sizes that have it. The harmonic arms once more, to be held against the standard head's setting for
    rare tokens."""
    rows = with_loss_at_three_times(once(rows))
    better = {(arm_of(row), row["size"]) for row in rows if row["question"] == BETTER_EPS.get(arm_of(row))}
    kept = [row for row in rows if not (row["question"] == ENOUGH and (arm_of(row), row["size"]) in better)]
    rows = [row | {"question": ENOUGH} if row["question"] in BETTER_EPS.values() else row for row in kept]
    return rows + [row | {"question": FOR_RARE} for row in rows if row["question"] == ENOUGH and arm_of(row) in TOLD]


def once(rows: list[dict]) -> list[dict]:
    """Each run's last row: one that was trained again for its reading has two."""
    return list({row["key"]: row for row in rows}.values())


def verdicts(rows: list[dict], *initials: str) -> str:
    """Markdown: a line for each hypothesis whose name begins with one of `initials` and arm, a column for each size;
    arms that have every measure first, and of each arm negative results."""
    found = [one for one in outcomes(rows) if one.hypothesis.name[0] in initials]
    if not found:
        return f"No verdict yet: every hypothesis is undecided, 0 of {SEEDS} seeds."
    sizes = sorted({one.size for one in found}, key=depth_and_width)
    table: dict[tuple[str, str], dict[str, Outcome]] = {}
    for one in found:
        table.setdefault((f"{one.hypothesis.name}: {one.hypothesis.text}", one.arm), {})[one.size] = one
    lines = []
    for (asked, arm), by_size in table.items():
        cells = [_cell(by_size[size]) if size in by_size else "" for size in sizes]
        worst = min(ORDER.index(one.verdict) for one in by_size.values())
        place = [*ARMS].index(arm) if arm in ARMS else len(ARMS)
        lines.append((place, worst, [asked, ARMS.get(arm, arm), *cells]))
    named = " | ".join(spaced(size) for size in sizes)
    return markdown_table(
        f"the harmonic head ... | arm | {named}", [line for *_, line in sorted(lines, key=lambda one: one[:2])]
    )


def told(rows: list[dict], name: str, arm: str) -> str:
    """A hypothesis in words: "level at 2 x 64, behind at 4 x 192 (+0.010 [...])", the number of the largest size."""
    asked = [one for one in outcomes(rows) if (one.hypothesis.name, one.arm) == (name, arm)]
    said: dict[str, list[str]] = {}
    for one in asked:
        few = f", {len(one.pairs)} of {SEEDS} seeds" if len(one.pairs) < SEEDS else ""
        found = f" ({difference(one.pairs)}{few})" if one is asked[-1] else ""
        said.setdefault(WORDS.get(one.verdict, one.verdict), []).append(f"{spaced(one.size)}{found}")
    return ", ".join(f"{word} at {_listed(sizes)}" for word, sizes in said.items()) or "not measured yet"


def spaced(size: str) -> str:
    return size.replace("x", " x ")


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1])] * bool(words[1:]) + words[-1:])


def _cell(one: Outcome) -> str:
    few = f" ({len(one.pairs)} of {SEEDS} seeds)" if len(one.pairs) < SEEDS else ""
    return f"**{one.verdict}**{few}: {difference(one.pairs)}"


def corrected(rows: list[dict], level: float = 0.05) -> str:
    """Which verdicts stand when all of them are asked at once: Holm's correction of the paired t tests over seeds, in
    words."""
    asked = [one for one in outcomes(rows) if one.arm in TOLD and len(one.pairs) >= SEEDS]
    if not asked:
        return "No verdict yet."
    p = np.array([stats.ttest_rel(*zip(*[pair[1:] for pair in one.pairs], strict=True)).pvalue for one in asked])
    order = np.argsort(p)
    above = p[order] > level / np.arange(len(p), 0, -1)
    stand = order[: above.argmax() if above.any() else len(p)]
    sides: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in (asked[i] for i in sorted(stand)):
        higher = mean(ours - theirs for _, ours, theirs in one.pairs) > 0
        side = "ahead" if higher == one.hypothesis.higher_is_better else "behind"
        sides.setdefault((one.arm, side), {}).setdefault(one.hypothesis.name, []).append(spaced(one.size))
    arms = [ARMS[arm] for arm in TOLD if any(one.arm == arm for one in asked)]
    told = [
        f"{ARMS[arm]} is {side} in {', '.join(f'{name} ({_listed(at)})' for name, at in sides[arm, side].items())}"
        for arm in TOLD
        for side in ("ahead", "behind")
        if (arm, side) in sides
    ]
    return (
        f"Of {len(asked)} verdicts on {_listed(arms)} over five seeds {sum(p < level)} intervals leave out zero; "
        f"chance alone would do that {len(asked) * level:.0f} times. By Holm's correction for all of them {len(stand)} "
        f"stand: {'; '.join(told) or 'none'}."
    )


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


def number_at(row: dict, path: str) -> float | None:
    """The number at a dotted path of a row; None where it was not measured. `inner`: of a list by layer the mean of all
    but the embeddings."""
    found: Any = row
    for part in path.split("."):
        try:
            found = mean(found[1:]) if part == "inner" else found[int(part) if isinstance(found, list) else part]
        except (KeyError, IndexError, TypeError):
            return None
    return found


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
