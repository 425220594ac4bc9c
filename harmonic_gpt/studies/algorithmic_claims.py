"""The paper's claims on the algorithmic tasks, judged on rows of results.jsonl. The rules are the same for every claim
and task."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from harmonic_gpt.studies.algorithmic import CASES, CODE_EXPONENT, MAIN_FRACTION, distinct
from harmonic_gpt.studies.claims import (
    Claim,
    Comparison,
    better_in,
    combined,
    compare,
    compare_counts,
    decisive,
    judged,
    short,
    table,
    told,
)
from harmonic_gpt.studies.networks import ARCHITECTURES
from harmonic_gpt.studies.structure import METRICS
from harmonic_gpt.studies.tasks import PROTOCOLS, TASKS, task

FLAT = 0.99  # "100 %" of the variance
CIRCLE = 0.1  # "near-perfect circle": standard deviation over mean of the radius
LEARNED = 0.9
LABELS = {"clean": "Clean protocol", "paper": "The code's leaking protocol"}
Rows = list[dict]


class Finding(NamedTuple):
    """What the rows of one protocol say of a claim: the number that decides, a verdict of each part, all the numbers
    as blocks of Markdown. Without verdicts the claim was not measured."""

    number: str = ""
    verdicts: list[str] = []
    details: list[str] = []


def note(rows: Rows) -> str:
    """What was run, each setting counted once, and what p stands for."""
    rows = distinct(rows)
    reasons = [row["reason"] for row in rows]
    return (
        f"{len(rows)} models, {reasons.count('converged')} stopped early, {reasons.count('diverged')} diverged. "
        "Numbers are medians over seeds. p is two-sided: Mann-Whitney over seeds, Fisher's exact test for counts of "
        "seeds, a sign test for counts of comparisons; it is not corrected for the number of tests. "
        "The verdict is that of the clean protocol."
    )


def select(rows: Rows, **wanted) -> Rows:
    """Rows whose fields have the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


Field = Callable[[dict], float | None]


def values(rows: Rows, field: Field) -> np.ndarray:
    return np.array([np.nan if (value := field(row)) is None else value for row in rows], dtype=float)


def named(key: str) -> Field:
    """The value under this key; none for rows without it."""
    return lambda row: row.get(key)


def two_components(row: dict) -> float | None:
    return row["explained"][1] if "explained" in row else None


def gap(row: dict) -> float:
    """Epochs from learning the training set to generalizing; infinite if it never generalized. For rows that learned
    the training set."""
    return np.inf if row["test_epochs"] is None else row["test_epochs"] - row["train_epochs"]


def claims(rows: Rows) -> list[Claim]:
    """Every claim that the rows can speak to, under both protocols where both were run."""
    judged = []
    for text, judge in CLAIMS.items():
        found = {protocol: judge([row for row in rows if row["protocol"] == protocol]) for protocol in PROTOCOLS}
        measured = {protocol: finding for protocol, finding in found.items() if finding.verdicts}
        details = "\n\n".join(
            "\n\n".join([f"{LABELS[protocol]}:", *finding.details]) for protocol, finding in measured.items()
        )
        other = combined(found["paper"].verdicts) if "paper" in measured else ""
        judged.append(Claim(text, combined(found["clean"].verdicts), found["clean"].number, details, other))
    return judged


def _always(_task: str) -> bool:
    return True


def _against_standard(
    rows: Rows, field: Field, higher_is_better: Callable[[str], bool] = _always, tasks=TASKS, **wanted
) -> Iterator[tuple[str, Comparison]]:
    """(label, comparison) of harmonic with standard, for every task and architecture that were run."""
    for name in tasks:
        for architecture in ARCHITECTURES:
            pair = [
                select(rows, kind="main", task=name, model=f"{head}_{architecture}", **wanted)
                for head in ("harmonic", "standard")
            ]
            ours, base = (values(side, field) for side in pair)
            if len(ours) and len(base):
                yield f"{task(name).title} {architecture}", compare(ours, base, higher_is_better(name))


def _found(comparisons: list[tuple[str, Comparison]], what: str, sides=("harmonic", "standard")) -> Finding:
    """All comparisons of one quantity; each is a part of the claim."""
    if not comparisons:
        return Finding()
    block = f"{what[0].upper()}{what[1:]}:\n\n{table(comparisons, sides)}"
    return Finding(f"{what}: {decisive(comparisons)}", [c.verdict for _, c in comparisons], [block])


def flat_lattice(rows: Rows) -> Finding:
    lines, parts, flat_of = [], [], {"harmonic": [0, 0], "standard": [0, 0]}
    for architecture in ARCHITECTURES:
        for head, counts in flat_of.items():
            shares = values(
                select(rows, kind="main", task="in_context", model=f"{head}_{architecture}", fraction=MAIN_FRACTION),
                two_components,
            )
            if len(shares):
                flat = int((shares > FLAT).sum())
                counts[0], counts[1] = counts[0] + flat, counts[1] + len(shares)
                median = f"median {100 * np.median(shares):.1f} % of the variance"
                lines.append(f"- {head} {architecture}: {flat} of {len(shares)} seeds, {median}")
                if head == "harmonic":
                    parts.append("holds" if flat >= 0.9 * len(shares) else "partly" if flat else "does not hold")
    return Finding(f"flat: {_seeds(flat_of)}" if parts else "", parts, ["\n".join(lines)])


def _seeds(counts: dict[str, list[int]]) -> str:
    """How many seeds of how many of two sides do it, with p. counts: {side: [seeds that do, seeds]}."""
    if not all(of for _, of in counts.values()):
        return ""
    (ours, (a, of_a)), (base, (b, of_b)) = counts.items()
    return f"{ours} {a} of {of_a} seeds, {base} {b} of {of_b} (p = {compare_counts(a, of_a, b, of_b):.2g})"


def circles(rows: Rows) -> Finding:
    counts, parts = {"harmonic": [0, 0], "standard": [0, 0]}, []
    for head in counts:
        runs = select(rows, kind="main", task="modular_addition", model=f"{head}_mlp", fraction=MAIN_FRACTION)
        if runs:
            is_round = values(runs, named("structure")) < CIRCLE
            is_flat = values(runs, two_components) > FLAT
            has_learned = values(runs, named("test_accuracy")) > LEARNED
            good = int((is_round & is_flat & has_learned).sum())
            counts[head] = [good, len(runs)]
            if head == "harmonic":
                parts.append("holds" if good > len(runs) / 2 else "partly" if good else "does not hold")
    criteria = f"radius within {CIRCLE:.0%}, two components, test accuracy above {LEARNED}"
    lines = [f"- {head} MLP: {good} of {count} seeds" for head, (good, count) in counts.items() if count]
    return Finding(
        f"circles: {_seeds(counts)}" if parts else "",
        parts,
        [f"A circle is near-perfect with {criteria}.", "\n".join(lines)],
    )


def compression(rows: Rows) -> Finding:
    return _found(list(_against_standard(rows, two_components, fraction=MAIN_FRACTION)), "variance in two components")


def task_structure(rows: Rows) -> Finding:
    compared = _against_standard(
        rows, named("structure"), lambda name: METRICS[name].higher_is_better, fraction=MAIN_FRACTION
    )
    return _found(list(compared), "the task's metric")


def accuracy(rows: Rows) -> Finding:
    compared = list(_against_standard(rows, named("test_accuracy"), fraction=MAIN_FRACTION))
    undecided = [(label, c) for label, c in compared if min(c.ours, c.base) < 1]
    finding = _found(undecided, "test accuracy")
    perfect = f"Both perfect at {len(compared) - len(undecided)} of {len(compared)}."
    return finding._replace(details=[*finding.details, perfect]) if undecided else finding


def grokking(rows: Rows) -> Finding:
    # As in the paper, runs that never learned are left out and counted
    learned = [row for row in rows if row["train_epochs"] is not None]
    tasks = ("modular_addition", "permutations")
    compared = _against_standard(learned, gap, lambda _task: False, tasks, fraction=MAIN_FRACTION)
    finding = _found(list(compared), "epochs between learning and generalizing")
    left_out = []
    for name in tasks:
        for architecture in ARCHITECTURES:
            for head in ("harmonic", "standard"):
                runs = select(rows, kind="main", task=name, model=f"{head}_{architecture}", fraction=MAIN_FRACTION)
                never = sum(row["train_epochs"] is None for row in runs)
                if never:
                    which = f"{never} of {len(runs)} {head} {architecture}s"
                    left_out.append(f"- {which} never reached {LEARNED} in training on {task(name).title}")
    return finding._replace(details=[*finding.details, *(["\n".join(left_out)] if left_out else [])])


def data_efficiency(rows: Rows) -> Finding:
    compared: list[tuple[str, Comparison]] = []
    for fraction in sorted({row["fraction"] for row in rows if row["kind"] == "main"} - {MAIN_FRACTION}):
        at_fraction = _against_standard(rows, named("test_accuracy"), fraction=fraction)
        compared += [(f"{label} at {fraction}", c) for label, c in at_fraction]
    # With three seeds no difference is significant: the medians decide
    undecided = [(label, c) for label, c in compared if max(c.ours, c.base) < 0.995 or c.ours != c.base]
    if not undecided:
        return Finding()
    parts = ["holds" if c.ours > c.base else "does not hold" for _, c in undecided]
    level = sum(c.ours == c.base for _, c in undecided)
    number = f"test accuracy: {better_in(parts.count('holds'), len(parts), level)}"
    points = "\n".join(f"| {label} | {short(c.ours)} | {short(c.base)} |" for label, c in undecided)
    block = (
        f"Test accuracy by task, architecture and train fraction:\n\n| | harmonic | standard |\n|---|---|---|\n{points}"
    )
    return Finding(number, parts, [block])


def cosets(rows: Rows) -> Finding:
    compared, parts = [], []
    for architecture in ARCHITECTURES:
        runs = select(rows, kind="main", task="permutations", model=f"harmonic_{architecture}", fraction=MAIN_FRACTION)
        base = select(rows, kind="main", task="permutations", model=f"standard_{architecture}", fraction=MAIN_FRACTION)
        if runs and base:
            silhouette, shuffled = (values(runs, named(key)) for key in ("silhouette", "silhouette_shuffled"))
            standard = values(base, named("silhouette"))
            chance, better = compare(silhouette, shuffled, True), compare(silhouette, standard, True)
            compared += [(f"{architecture}, rows shuffled", chance), (f"{architecture}, standard", better)]
            parts.append(combined([chance.verdict, better.verdict]))
    return _found(compared, "best silhouette", ("harmonic", "control"))._replace(verdicts=parts)


def _side(rows: Rows, name: str, model: str) -> Rows:
    """Runs at the main setting, of the main models or of the side studies."""
    runs = select(rows, task=name, model=model, fraction=MAIN_FRACTION, exponent=CODE_EXPONENT)
    return [row for row in runs if row["kind"] in ("main", "side")]


def _swept(rows: Rows, name: str, **wanted) -> Rows:
    """Runs of the harmonic MLP, of the main setting or of the sweep of exponents, each setting once."""
    runs = select(distinct(rows), task=name, model="harmonic_mlp", fraction=MAIN_FRACTION, **wanted)
    return [row for row in runs if row["kind"] in ("main", "exponents")]


def lattice_needs_either(rows: Rows) -> Finding:
    """Either ingredient alone makes the lattice flatter than the standard model's."""
    compared = []
    for architecture in ARCHITECTURES:
        base = values(_side(rows, "in_context", f"standard_{architecture}"), two_components)
        for head in ("euclidean_softmax", "dot_harmax"):
            ours = values(_side(rows, "in_context", f"{head}_{architecture}"), two_components)
            if len(ours) and len(base):
                compared.append((f"{head} {architecture}", compare(ours, base, True)))
    return _found(compared, "variance in two components", ("one ingredient", "standard"))


def addition_needs_both(rows: Rows) -> Finding:
    """The harmonic model's circle is better than that of either ingredient alone."""
    compared = []
    for architecture in ARCHITECTURES:
        ours = values(_side(rows, "modular_addition", f"harmonic_{architecture}"), named("structure"))
        for head in ("euclidean_softmax", "dot_harmax"):
            base = values(_side(rows, "modular_addition", f"{head}_{architecture}"), named("structure"))
            if len(ours) and len(base):
                compared.append((f"{head} {architecture}", compare(ours, base, False)))
    return _found(compared, "circle deviation", ("harmonic", "one ingredient"))


def other_losses(rows: Rows) -> Finding:
    compared = []
    for name in TASKS:
        for architecture in ARCHITECTURES:
            for head in ("contrastive", "spherical"):
                ours, base = (_side(rows, name, f"{h}_{architecture}") for h in ("harmonic", head))
                if ours and base:
                    comparison = compare(values(ours, two_components), values(base, two_components), True)
                    compared.append((f"{task(name).title} {architecture}, {head}", comparison))
    return _found(compared, "variance in two components", ("harmonic", "other loss"))


def best_exponent(rows: Rows) -> Finding:
    """Is n = 1, in one of its readings (1 or CODE_EXPONENT on the distance), alone at the top (holds), level there with
    other exponents (partly), or beaten? By test accuracy, then by compression, medians to two digits each."""
    fields = {"test accuracy": named("test_accuracy"), "variance in two components": two_components}
    readings = {1.0, CODE_EXPONENT}
    beaten, blocks, parts, best_of = [], [], [], []
    for name in TASKS:
        runs = _swept(rows, name)
        at_n = {n: select(runs, exponent=n) for n in sorted({row["exponent"] for row in runs})}
        if len(at_n) < 3 or CODE_EXPONENT not in at_n:
            continue
        medians = {n: [_median(of_n, field) for field in fields.values()] for n, of_n in at_n.items()}
        best = [n for n in at_n if medians[n] == max(medians.values())]
        parts.append(
            "holds" if readings.issuperset(best) else "does not hold" if readings.isdisjoint(best) else "partly"
        )
        if parts[-1] == "does not hold":
            level = medians[best[0]][0] == medians[CODE_EXPONENT][0]
            what = list(fields)[1 if level else 0]  # the one that decides
            ours, base = (values(at_n[n], fields[what]) for n in (best[0], CODE_EXPONENT))
            label = f"{task(name).title}, {what} at n = {best[0]:g} against {CODE_EXPONENT:g}"
            beaten.append((label, compare(ours, base, True)))
        told_best = ", ".join(f"{n:g}" for n in best) + (" (level)" if len(best) > 1 else "")
        best_of.append(f"{task(name).title} {told_best}")
        lines = "\n".join(f"| {n:g} | {a:.2f} | {ev:.2f} |" for n, (a, ev) in medians.items())
        head = "| n on the distance | test accuracy | variance in two components |\n|---|---|---|"
        blocks.append(f"{task(name).title}, best {told_best}:\n\n{head}\n{lines}")
    if not beaten:
        return Finding(f"best n on the distance: {'; '.join(best_of)}" if parts else "", parts, blocks)
    label, worst = max(beaten, key=lambda item: item[1].ours - item[1].base)  # where the code's exponent loses most
    return Finding(f"{label}: {told(worst)}", parts, blocks)


def _median(runs: Rows, field: Field) -> float:
    """Over seeds, to two digits; a run without the value (diverged) counts as 0."""
    return round(float(np.median(np.nan_to_num(values(runs, field)))), 2)


def exponent_convention(rows: Rows) -> Finding:
    """Which reading of "n = 1" gives the paper's own outcome (flat lattices; circles) in more of the seeds?"""
    counts: dict[str, list[int]] = {}
    lines = []
    for reading, n in (("n = 2 on the distance (the code's 1)", CODE_EXPONENT), ("n = 1 on it", 1.0)):
        counts[reading] = [0, 0]
        for name in ("in_context", "modular_addition"):
            runs = _swept(rows, name, exponent=n)
            if runs:
                flat = int((values(runs, two_components) > FLAT).sum())
                counts[reading] = [counts[reading][0] + flat, counts[reading][1] + len(runs)]
                learned = float(np.median(values(runs, named("test_accuracy"))))
                lines.append(
                    f"- {reading}, {task(name).title}: {flat} of {len(runs)} flat, test accuracy {learned:.2f}"
                )
    (ours, of_ours), (base, of_base) = counts.values()
    if not (of_ours and of_base):
        return Finding()
    p = compare_counts(ours, of_ours, base, of_base)
    verdict = judged(ours / of_ours > base / of_base, p)
    return Finding(f"flat: {_seeds(counts)}", [verdict], ["\n".join(lines)])


def case_study(rows: Rows) -> Finding:
    lines, learned = [], {}
    for head, decay in CASES:
        runs = select(rows, kind="case", model=f"{head}_mlp", weight_decay=decay)
        if runs:
            accuracies, explained = values(runs, named("test_accuracy")), values(runs, two_components)
            learned[head, decay] = [int((accuracies > LEARNED).sum()), len(runs)]
            lines.append(
                f"- {head}, weight decay {decay}: {learned[head, decay][0]} of {len(runs)} seeds generalize, median "
                f"test accuracy {np.median(accuracies):.2f}, variance in two components {np.median(explained):.2f}"
            )
    if len(learned) < len(CASES):
        return Finding()
    most = {case: good > count / 2 for case, (good, count) in learned.items()}
    expected = {("harmonic", 0.0): True, ("standard", 0.0): False, ("standard", 0.5): True}
    parts = ["holds" if most[case] == holds else "does not hold" for case, holds in expected.items()]
    without = {head: learned[head, 0.0] for head in ("harmonic", "standard")}
    return Finding(f"generalize without weight decay: {_seeds(without)}", parts, ["\n".join(lines)])


# What the paper says, and the function that judges it from the rows of one protocol
CLAIMS: dict[str, Callable[[Rows], Finding]] = {
    "Harmonic explains 100 % of the variance with two components on in-context learning in nearly all seeds "
    "(section 3)": flat_lattice,
    "Harmonic MLPs draw near-perfect circles on modular addition (section 3)": circles,
    "Harmonic embeddings are more compressed (figure 3a)": compression,
    "Harmonic embeddings show each task's structure more clearly (figure 2)": task_structure,
    "Harmonic needs less data, most of all for in-context learning (figure 3b)": data_efficiency,
    "Far less grokking on modular addition and permutations (figure 3c)": grokking,
    "Harmonic test accuracy is higher (figure 3b, at the largest fraction)": accuracy,
    "Permutations lie in cosets of S4 (appendix B)": cosets,
    "Without weight decay, harmonic generalizes on modular addition; standard needs weight decay "
    "(case study)": case_study,
    "Ablation: the lattice needs either the distance or HarMax (section 6)": lattice_needs_either,
    "Ablation: modular addition needs both (section 6)": addition_needs_both,
    "Contrastive and spherical losses are worse (appendix D)": other_losses,
    "MLPs prefer exponent 1, in either reading (appendix E)": best_exponent,
    "The figures come from an exponent that acts on the squared distance (the code)": exponent_convention,
}
