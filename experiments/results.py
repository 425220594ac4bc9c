"""The protocol's verdicts, certificates and frontier as Markdown, from the rows that there are.

summary.py puts them into docs/results/prediction.md. What has no row is not mentioned; what has too few says so.
PROTOCOL.md has hypotheses and rules.
"""

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from report import arm_of, interval, paired, settings_of
from run_queue import TIMES, ArmSearch

QUEUE = Path(__file__).with_name("protocol.yaml")
SEEDS = 5  # pairs of a verdict
LEVEL = 0.01  # nats per token: a difference of loss that is none
ORDER = ("does not hold", "level", "undecided", "holds")  # negative results first


class Hypothesis(NamedTuple):
    name: str
    text: str
    question: str  # of protocol.yaml
    measure: str  # where the number stands in a row, as a dotted path
    higher_is_better: bool = False


HYPOTHESES = (
    Hypothesis("P1", "predicts better with enough text", "enough text", "val_loss"),
    Hypothesis("P2", "predicts better with scarce text, 3.5 epochs", "scarce text, 4 epochs", "val_loss"),
    Hypothesis("P3", "predicts better with scarce text, 14 epochs", "scarce text, 16 epochs", "val_loss"),
    Hypothesis("R1", "higher lens agreement", "enough text", "reading.lens_agreement", True),
    Hypothesis("R2", "higher agreement of a tuned lens", "enough text", "reading.tuned_lens", True),
    Hypothesis("R3", "lower label distance", "enough text", "reading.label_distance"),
    Hypothesis("R4", "higher own center", "enough text", "reading.own_center", True),
    Hypothesis("U1", "lower calibration error, without temperature", "enough text", "uses.calibration.error"),
    Hypothesis("U2", "loses less by a head in int4", "enough text", "uses.quantized.int4"),
    Hypothesis("U3", "early exit at 0.9 saves more blocks", "enough text", "uses.early_exit.2.blocks_saved", True),
    Hypothesis("U4", "tokens added from 16 contexts cost less", "enough text", "uses.new_token.2.best.cost"),
)


def verdict(hypothesis: Hypothesis, pairs: list[tuple[int, float, float]]) -> str:
    """holds, does not hold, level or undecided, by PROTOCOL.md's rule."""
    limits = interval(pairs)
    if len(pairs) < SEEDS or limits is None:
        return "undecided"
    low, high = limits if hypothesis.higher_is_better else (-limits[1], -limits[0])  # positive: for harmonic
    if hypothesis.measure == "val_loss" and max(abs(low), abs(high)) < LEVEL:
        return "level"
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"


def verdicts(rows: list[dict]) -> str:
    """Markdown: a line for each hypothesis, size and arm that has a pair of seeds; negative results first."""
    found = []
    for hypothesis in HYPOTHESES:
        for (question, size, arm), pairs in paired(rows, partial(number_at, path=hypothesis.measure)).items():
            if question == hypothesis.question:
                gap, limits = mean(ours - theirs for _, ours, theirs in pairs), interval(pairs)
                outcome = verdict(hypothesis, pairs)
                known = f"{outcome}: {len(pairs)} of {SEEDS} seeds" if len(pairs) < SEEDS else outcome
                shown = "" if limits is None else " [{:+.4f}, {:+.4f}]".format(*limits)
                cells = [f"{hypothesis.name}: {hypothesis.text}", arm, size, known, f"{gap:+.4f}{shown}"]
                found.append((ORDER.index(outcome), "| " + " | ".join(cells) + " |"))
    if not found:
        return f"No verdict yet: every hypothesis is undecided, 0 of {SEEDS} seeds."
    header = ["| the harmonic head ... | arm | size | verdict | arm - standard, mean [95 %] |", "|---|---|---|---|---|"]
    return "\n".join([*header, *(line for _, line in sorted(found, key=lambda pair: pair[0]))])


def number_at(row: dict, path: str) -> float | None:
    """The number at a dotted path of a row; None where it was not measured."""
    found: Any = row
    for part in path.split("."):
        try:
            found = found[int(part) if isinstance(found, list) else part]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def certificates(searches: list[ArmSearch]) -> str:
    """Markdown: every search that has a run: whether it is certified, and what each ladder's values lose."""
    lines = ["| arm | size | state | best so far, and what its neighbors lose (nats per token) |", "|---|---|---|---|"]
    for one in searches:
        center = one.state.center
        trained = sum(one.loss(point, seed) is not None for point, seed in one.state.asked)
        loss = one.loss(center, one.seeds[0])
        if not trained or loss is None:
            continue
        state = f"certified with {one.state.certified} seeds" if one.state.certified > 1 else "not certified yet"
        ladders = [_ladder(one, axis, name) for axis, name in enumerate(one.ladders)]
        runs = "1 run" if trained == 1 else f"{trained} runs"
        cells = [one.arm, one.size, f"{state}, {runs}", f"{loss:.4f} at {'; '.join(ladders)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ladder(one: ArmSearch, axis: int, name: str) -> str:
    """A setting's best value, with the mean loss over common seeds of each other value that was tried from there."""
    values, center, others = one.ladders[name], one.state.center, []
    for i, value in enumerate(values):
        point = (*center[:axis], i, *center[axis + 1 :])
        both = [(one.loss(point, seed), one.loss(center, seed)) for seed in one.seeds]
        gaps = [a - b for a, b in both if a is not None and b is not None]
        if gaps and point != center:
            others.append(f"{_value(value)}: {mean(gaps):+.4f}")
    short = name.removeprefix(TIMES).split(".")[-1] + (" x" if name.startswith(TIMES) else "")
    return f"{short} **{_value(values[center[axis]])}**" + (f" ({', '.join(others)})" if others else "")


def _value(value: object) -> str:
    return f"{value[1]:g}" if isinstance(value, list) else f"{value:g}"  # of betas, the second


def frontier(rows: list[dict]) -> str:
    """Markdown: loss against reading over r and n, best loss first. A point keeps the geometry if it reads better than
    standard on every seed, by lens agreement and label distance."""
    read = [row for row in rows if row["question"] == "frontier" and "reading" in row]
    standard = {row["seed"]: row["reading"] for row in read if arm_of(row) == "standard"}
    points: dict[str, list[dict]] = {}
    for row in read:
        points.setdefault(f"{arm_of(row)} {settings_of(row)}", []).append(row)
    lines = ["| r | n | seeds | nats per token | lens agreement | label distance | own center | keeps the geometry |"]
    lines.append("|---" * 8 + "|")
    for runs in sorted(points.values(), key=lambda runs: mean(row["val_loss"] for row in runs)):
        chosen = runs[0]["settings"]
        is_standard = arm_of(runs[0]) == "standard"
        r = "standard" if is_standard else f"{chosen['model.center_std'] / chosen['model.hidden_scale']:.3g}"
        keeps = "-" if is_standard else keeps_geometry(runs, standard)
        numbers = [mean(row["val_loss"] for row in runs)]
        numbers += [
            mean(row["reading"][key] for row in runs) for key in ("lens_agreement", "label_distance", "own_center")
        ]
        n = "-" if is_standard else f"{chosen['model.exponent']:g}"
        cells = [r, n, str(len(runs)), *(f"{value:.4f}" for value in numbers), keeps]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if points else ""


def keeps_geometry(runs: list[dict], standard: dict[int, dict]) -> str:
    """yes or no by PROTOCOL.md's rule; "undecided" where a seed of the standard head is missing."""
    if any(row["seed"] not in standard for row in runs):
        return "undecided"
    both = [(row["reading"], standard[row["seed"]]) for row in runs]
    better = [a["lens_agreement"] > b["lens_agreement"] and a["label_distance"] < b["label_distance"] for a, b in both]
    return "yes" if all(better) else "no"


def results(rows: list[dict], searches: list[ArmSearch]) -> str:
    """All of it."""
    rows = list({row["key"]: row for row in rows}.values())  # a run that was repeated, for its reading, counts once
    parts = [f"{len(rows)} runs of the protocol (`experiments/PROTOCOL.md`) so far.", verdicts(rows)]
    if any(one.loss(*one.state.asked[0]) is not None for one in searches):
        parts.append(certificates(searches))
    parts += [text for text in [frontier(rows)] if text]
    return "\n\n".join(parts)
