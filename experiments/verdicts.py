"""The protocol's hypotheses, the rows that are compared for them, and their verdicts as Markdown.

summary.py puts the tables into the pages of docs/results. What has no row is not mentioned; what has too few says so.
PROTOCOL.md has hypotheses and rules; what it calls holds is told as *ahead*, does not hold as *behind*.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from report import SeedPairs, arm_of, difference, interval, markdown_table, number_at, paired
from scipy import stats

QUEUE = Path(__file__).with_name("protocol.yaml")
UNUSED = "measured.rare.all"  # loss on text that no choice has seen
EXIT = "uses.exit_at_agreement.blocks_saved"
ENOUGH, THRICE = "enough text", "three times the rate"  # questions of protocol.yaml
# Arms at the eps that suits them; all other runs have 1e-5, which suits r = 1/4
BETTER_EPS = {"standard": "standard with eps 1e-8", "harmonic": "r = 1 with eps 1e-6"}
FOR_RARE = "standard for rare tokens"  # of its settings the one that knows them best
SIXTEENTH, SIXTY_FOURTH = "scarce text, 4 epochs", "scarce text, 16 epochs"
# With the final layer norm's gain fixed, held against the standard head without
FIXED_GAIN = {question: f"{question}, fixed gain" for question in (SIXTEENTH, SIXTY_FOURTH)}
SEEDS = 5  # pairs of a verdict
LEVEL = 0.01  # nats per token: a difference of loss that is none
# Arms of protocol.yaml, as the pages call them
ARMS = {"harmonic": "r = 1", "quarter": "r = 1/4", "eighth": "r = 1/8", "standard": "standard"}
TOLD = ("harmonic", "quarter")  # those that have every measure
TUNED = "quarter"  # the one that was tuned as long as the standard head, with little text and for rare tokens too
# Verdicts, said of the harmonic head
AHEAD, BEHIND, SAME, NOT_SHOWN, UNDECIDED = "ahead", "behind", "level", "no difference shown", "undecided"
NEGATIVE_FIRST = (BEHIND, SAME, NOT_SHOWN, UNDECIDED, AHEAD)
MISSING = "◦"  # where there are no runs
SIGNS = {AHEAD: "+", BEHIND: "−", SAME: "=", NOT_SHOWN: "·", UNDECIDED: "?"}


class Hypothesis(NamedTuple):
    name: str
    label: str
    question: str  # of protocol.yaml
    measure: str  # where the number stands in a row, as a dotted path
    higher_is_better: bool = False


HYPOTHESES = (
    Hypothesis("P1", "loss", ENOUGH, "val_loss"),
    Hypothesis("P4", "loss on text that no choice has seen", ENOUGH, UNUSED),
    Hypothesis("P2", "loss with a sixteenth of the text", SIXTEENTH, "val_loss"),
    Hypothesis("P8", "a sixteenth, gain of the last norm fixed", FIXED_GAIN[SIXTEENTH], "val_loss"),
    Hypothesis("P3", "loss with a sixty-fourth of the text", SIXTY_FOURTH, "val_loss"),
    Hypothesis("P7", "a sixty-fourth, gain of the last norm fixed", FIXED_GAIN[SIXTY_FOURTH], "val_loss"),
    Hypothesis("R1", "lens agreement", ENOUGH, "reading.lens_agreement", True),
    Hypothesis("R3", "label distance", ENOUGH, "reading.label_distance"),
    Hypothesis("R2", "tuned lens", ENOUGH, "reading.tuned_lens", True),
    Hypothesis("R4", "own center", ENOUGH, "reading.own_center", True),
    Hypothesis("U5", "rare tokens", ENOUGH, "measured.rare.loss"),
    Hypothesis("U8", "whether a rare token comes", ENOUGH, "measured.rare.when"),
    Hypothesis("U7", "which rare token comes", ENOUGH, "measured.rare.which"),
    Hypothesis("U9", "which rare token, after a fit", ENOUGH, "measured.rare.which_after_fit"),
    Hypothesis("U10", "the same, standard tuned for it", FOR_RARE, "measured.rare.which_after_fit"),
    Hypothesis("U6", "early exit at equal agreement", ENOUGH, EXIT, True),
    Hypothesis("U3", "early exit at equal confidence", ENOUGH, "uses.early_exit.2.blocks_saved", True),
    Hypothesis("U4", "tokens added from 16 contexts", ENOUGH, "uses.new_token.2.best.cost"),
    Hypothesis("U1", "calibration error", ENOUGH, "uses.calibration.error"),
    Hypothesis("U2", "loss by a head in int4", ENOUGH, "uses.quantized.int4"),
    Hypothesis("S2", "loss at three times the learning rate", THRICE, "lost_at_three_times"),
)


def verdict(hypothesis: Hypothesis, pairs: SeedPairs) -> str:
    """By PROTOCOL.md's rule: AHEAD, BEHIND, SAME or NOT_SHOWN; UNDECIDED with too few seeds."""
    limits = interval(pairs)
    if len(pairs) < SEEDS or limits is None:
        return UNDECIDED
    low, high = limits if hypothesis.higher_is_better else (-limits[1], -limits[0])  # positive: for harmonic
    if hypothesis.name[0] == "P" and max(abs(low), abs(high)) < LEVEL:
        return SAME
    return AHEAD if low > 0 else BEHIND if high < 0 else NOT_SHOWN


class Outcome(NamedTuple):
    hypothesis: Hypothesis
    arm: str
    size: str  # depth x width
    pairs: SeedPairs
    verdict: str


def outcomes(rows: list[dict]) -> list[Outcome]:
    """Of every hypothesis, arm that has every measure, and size that has a pair of seeds, the smallest size first.
    rows: of `against_best`."""
    found = []
    for hypothesis in HYPOTHESES:
        for (question, size, arm), pairs in paired(rows, partial(number_at, path=hypothesis.measure)).items():
            if question == hypothesis.question and arm in TOLD:
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
    rare tokens; and the standard head, to be held against a harmonic one with a fixed gain."""
    rows = with_loss_at_three_times(once(rows))
    better = {(arm_of(row), row["size"]) for row in rows if row["question"] == BETTER_EPS.get(arm_of(row))}
    kept = [row for row in rows if not (row["question"] == ENOUGH and (arm_of(row), row["size"]) in better)]
    rows = [row | {"question": ENOUGH} if row["question"] in BETTER_EPS.values() else row for row in kept]
    rows += [row | {"question": FOR_RARE} for row in rows if row["question"] == ENOUGH and arm_of(row) in TOLD]
    standard = [row for row in rows if row["question"] in FIXED_GAIN and arm_of(row) == "standard"]
    return rows + [row | {"question": FIXED_GAIN[row["question"]]} for row in standard]


def once(rows: list[dict]) -> list[dict]:
    """Each run's last row: one that was trained again for its reading has two."""
    return list({row["key"]: row for row in rows}.values())


def table(rows: list[dict], *initials: str) -> str:
    """Markdown: a line for each arm and hypothesis whose name begins with one of `initials`, negative results first,
    and a column for each size."""
    found = [one for one in outcomes(rows) if one.hypothesis.name[0] in initials]
    if not found:
        return f"No verdict yet: every hypothesis is undecided, 0 of {SEEDS} seeds."
    sizes = _sizes(found)
    lines: dict[tuple[int, int, int], list[str]] = {}
    for (hypothesis, arm), by_size in _grouped(found).items():
        both = [one.verdict for one in found if one.hypothesis == hypothesis]
        place = min(map(NEGATIVE_FIRST.index, both)), HYPOTHESES.index(hypothesis), TOLD.index(arm)
        cells = [_cell(by_size[size]) if size in by_size else "" for size in sizes]
        lines[place] = [f"{hypothesis.label} ({hypothesis.name})", ARMS[arm], *cells]
    named = " | ".join(map(spaced, sizes))
    return markdown_table(f"measure | arm | {named}", [lines[place] for place in sorted(lines)])


def _sizes(found: list[Outcome]) -> list[str]:
    return sorted({one.size for one in found}, key=depth_and_width)


def _grouped(found: list[Outcome]) -> dict[tuple[Hypothesis, str], dict[str, Outcome]]:
    groups: dict[tuple[Hypothesis, str], dict[str, Outcome]] = {}
    for one in found:
        groups.setdefault((one.hypothesis, one.arm), {})[one.size] = one
    return groups


def _cell(one: Outcome) -> str:
    return f"**{one.verdict}**{_few(one)}: {difference(one.pairs)}"


def _few(one: Outcome) -> str:
    return f" ({len(one.pairs)} of {SEEDS} seeds)" if len(one.pairs) < SEEDS else ""


def counted(rows: list[dict], names: tuple[str, ...], arm: str) -> str:
    """Several hypotheses in words: "ahead in lens agreement (3 of 4 sizes), ...; behind in ..."; those that are neither
    at any size are left out."""
    found = [one for one in outcomes(rows) if one.arm == arm and one.hypothesis.name in names]
    said = []
    for word in (AHEAD, BEHIND):
        parts = []
        for name in names:
            asked = [one for one in found if one.hypothesis.name == name]
            if at := [one for one in asked if one.verdict == word]:
                parts.append(f"{at[0].hypothesis.label} ({len(at)} of {len(asked)}{'' if said or parts else ' sizes'})")
        if parts:
            said.append(f"{word} in {', '.join(parts)}")
    return "; ".join(said) or (NOT_SHOWN if found else "not measured yet")


def told(rows: list[dict], name: str, arm: str) -> str:
    """One hypothesis in words: "behind at all 3 sizes: +0.010 [...] at 2 x 64, ...", with the smallest and the largest
    size's difference."""
    asked = [one for one in outcomes(rows) if (one.hypothesis.name, one.arm) == (name, arm)]
    if not asked:
        return "not measured yet"
    at: dict[str, list[str]] = {}
    for one in asked:
        at.setdefault(one.verdict, []).append(spaced(one.size))
    said = [f"{word} at {_listed(sizes) if len(sizes) < len(asked) else _all(sizes)}" for word, sizes in at.items()]
    known = [one for one in asked if len(one.pairs) >= SEEDS] or asked
    ends = {spaced(one.size): f"{difference(one.pairs)}{_few(one)}" for one in (known[0], known[-1])}
    numbers = [f"{gap} at {size}" for size, gap in ends.items()] if len(ends) > 1 else ends.values()
    return f"{', '.join(said)}: {', '.join(numbers)}"


def _all(sizes: list[str]) -> str:
    return f"all {len(sizes)} sizes" if len(sizes) > 1 else sizes[0]


def spaced(size: str) -> str:
    return size.replace("x", " x ")


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1])] * bool(words[1:]) + words[-1:])


def signs(rows: list[dict], level: float = 0.05) -> str:
    """Markdown: every verdict as a sign, bold where it stands by Holm's correction of the paired t tests for all of
    them; before it how many do."""
    found = outcomes(rows)
    asked = [one for one in found if len(one.pairs) >= SEEDS]
    if not asked:
        return "No verdict yet."
    p = np.array([stats.ttest_rel(*zip(*[pair[1:] for pair in one.pairs], strict=True)).pvalue for one in asked])
    order = np.argsort(p)
    above = p[order] > level / np.arange(len(p), 0, -1)
    stand = {id(asked[i]) for i in order[: above.argmax() if above.any() else len(p)]}
    sizes, groups = _sizes(found), _grouped(found)
    lines = []
    for hypothesis in HYPOTHESES:
        cells = []
        for arm in TOLD:
            by_size = groups.get((hypothesis, arm), {})
            cells.append(" ".join(_sign(by_size.get(size), stand) for size in sizes))
        if any(set(cell) - {MISSING, " "} for cell in cells):
            lines.append([f"{hypothesis.label} ({hypothesis.name})", *cells])
    columns = [f"{ARMS[arm]}: {', '.join(map(spaced, sizes))}" for arm in TOLD]
    counted_ = (
        f"Of {len(asked)} comparisons over five seeds {sum(p < level)} intervals leave out zero; chance alone would do "
        f"that {len(asked) * level:.0f} times. After Holm's correction for all of them {len(stand)} stand, in bold."
    )
    return f"{counted_}\n\n{markdown_table(' | '.join(['measure', *columns]), lines)}"


def _sign(one: Outcome | None, stand: set[int]) -> str:
    sign = SIGNS[one.verdict] if one else MISSING
    return f"**{sign}**" if id(one) in stand else sign
