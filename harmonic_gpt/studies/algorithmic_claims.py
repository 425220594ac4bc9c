"""The paper's claims on the algorithmic tasks, judged on rows of results.jsonl. The rules are the same for every claim
and task."""

from collections.abc import Callable, Iterator

import numpy as np

from harmonic_gpt.studies.algorithmic import CASES, CODE_EXPONENT, MAIN_FRACTION
from harmonic_gpt.studies.claims import Claim, Comparison, combined, compare
from harmonic_gpt.studies.networks import ARCHITECTURES
from harmonic_gpt.studies.structure import METRICS
from harmonic_gpt.studies.tasks import PROTOCOLS, TASKS, task

FLAT = 0.99  # "100 %" of the variance
CIRCLE = 0.1  # "near-perfect circle": standard deviation over mean of the radius
LEARNED = 0.9
Rows = list[dict]


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
        measured, verdicts = [], {}
        for protocol in PROTOCOLS:
            details, parts = judge([row for row in rows if row["protocol"] == protocol])
            verdicts[protocol] = combined(parts)
            if parts:
                measured.append(f"{protocol}: {'; '.join(details)}")
        other = verdicts["paper"] if verdicts["paper"] != "not measured" else ""
        judged.append(Claim(text, "<br>".join(measured), verdicts["clean"], other))
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


def _told(comparisons: list[tuple[str, Comparison]], what: str) -> tuple[list[str], list[str]]:
    details = [
        f"{label} {_short(c.ours)} against {_short(c.base)} (p = {c.p:.2g}, {c.verdict})" for label, c in comparisons
    ]
    return [f"{what}: {', '.join(details)}"] if details else [], [c.verdict for _, c in comparisons]


def _short(value: float) -> str:
    return "never" if np.isinf(value) else f"{value:.3g}"


def flat_lattice(rows: Rows):
    details, parts = [], []
    for architecture in ARCHITECTURES:
        for head in ("harmonic", "standard"):
            shares = values(
                select(rows, kind="main", task="in_context", model=f"{head}_{architecture}", fraction=MAIN_FRACTION),
                two_components,
            )
            if len(shares):
                flat = int((shares > FLAT).sum())
                details.append(
                    f"{head} {architecture} {flat} of {len(shares)} seeds, median {100 * np.median(shares):.1f} %"
                )
                if head == "harmonic":
                    parts.append("holds" if flat >= 0.9 * len(shares) else "partly" if flat else "does not hold")
    return details, parts


def circles(rows: Rows):
    details, parts = [], []
    for head in ("harmonic", "standard"):
        runs = select(rows, kind="main", task="modular_addition", model=f"{head}_mlp", fraction=MAIN_FRACTION)
        if runs:
            is_round = values(runs, named("structure")) < CIRCLE
            is_flat = values(runs, two_components) > FLAT
            has_learned = values(runs, named("test_accuracy")) > LEARNED
            good = int((is_round & is_flat & has_learned).sum())
            criteria = f"radius within {CIRCLE:.0%}, two components, test accuracy above {LEARNED}"
            details.append(f"{head} MLP: {good} of {len(runs)} seeds ({criteria})")
            if head == "harmonic":
                parts.append("holds" if good > len(runs) / 2 else "partly" if good else "does not hold")
    return details, parts


def compression(rows: Rows):
    return _told(list(_against_standard(rows, two_components, fraction=MAIN_FRACTION)), "variance in two components")


def task_structure(rows: Rows):
    compared = _against_standard(
        rows, named("structure"), lambda name: METRICS[name].higher_is_better, fraction=MAIN_FRACTION
    )
    return _told(list(compared), "the task's metric")


def accuracy(rows: Rows):
    compared = list(_against_standard(rows, named("test_accuracy"), fraction=MAIN_FRACTION))
    undecided = [(label, c) for label, c in compared if min(c.ours, c.base) < 1]
    details, parts = _told(undecided, "test accuracy")
    if compared:
        details.append(f"both perfect at {len(compared) - len(undecided)} of {len(compared)}")
    return details, parts


def grokking(rows: Rows):
    # As in the paper, runs that never learned are left out and counted
    learned = [row for row in rows if row["train_epochs"] is not None]
    tasks = ("modular_addition", "permutations")
    compared = _against_standard(learned, gap, lambda _task: False, tasks, fraction=MAIN_FRACTION)
    details, parts = _told(list(compared), "epochs between learning and generalizing")
    for name in tasks:
        for architecture in ARCHITECTURES:
            for head in ("harmonic", "standard"):
                runs = select(rows, kind="main", task=name, model=f"{head}_{architecture}", fraction=MAIN_FRACTION)
                never = sum(row["train_epochs"] is None for row in runs)
                if never:
                    which = f"{never} of {len(runs)} {head} {architecture}s"
                    details.append(f"{which} never reached {LEARNED} in training on {task(name).title}")
    return details, parts


def data_efficiency(rows: Rows):
    compared: list[tuple[str, Comparison]] = []
    for fraction in sorted({row["fraction"] for row in rows if row["kind"] == "main"} - {MAIN_FRACTION}):
        at_fraction = _against_standard(rows, named("test_accuracy"), fraction=fraction)
        compared += [(f"{label} at {fraction}", c) for label, c in at_fraction]
    # With three seeds no difference is significant: the medians decide
    undecided = [c for _, c in compared if max(c.ours, c.base) < 0.995 or c.ours != c.base]
    parts = ["holds" if c.ours > c.base else "does not hold" for c in undecided]
    if not parts:
        return [], []
    largest = sorted(compared, key=lambda item: item[1].base - item[1].ours)[:4]
    most = ", ".join(f"{label} {c.ours:.2f} against {c.base:.2f}" for label, c in largest)
    points = f"{parts.count('holds')} of {len(parts)} points (tasks x architectures x fractions)"
    return [f"harmonic is better at {points}, most: {most}"], parts


def cosets(rows: Rows):
    details, parts = [], []
    for architecture in ARCHITECTURES:
        runs = select(rows, kind="main", task="permutations", model=f"harmonic_{architecture}", fraction=MAIN_FRACTION)
        base = select(rows, kind="main", task="permutations", model=f"standard_{architecture}", fraction=MAIN_FRACTION)
        if runs and base:
            silhouette, shuffled = (values(runs, named(key)) for key in ("silhouette", "silhouette_shuffled"))
            standard = values(base, named("silhouette"))
            chance, better = compare(silhouette, shuffled, True), compare(silhouette, standard, True)
            details.append(
                f"{architecture}: best silhouette {chance.ours:.2f}, rows shuffled {chance.base:.2f} "
                f"(p = {chance.p:.2g}), standard {better.base:.2f} (p = {better.p:.2g})"
            )
            parts.append(combined([chance.verdict, better.verdict]))
    return details, parts


def _side(rows: Rows, name: str, model: str) -> Rows:
    """Runs at the main setting, of the main models or of the side studies."""
    runs = select(rows, task=name, model=model, fraction=MAIN_FRACTION, exponent=CODE_EXPONENT)
    return [row for row in runs if row["kind"] in ("main", "side")]


def _swept(rows: Rows, name: str, **wanted) -> Rows:
    """Runs of the harmonic MLP, of the main setting or of the sweep of exponents."""
    runs = select(rows, task=name, model="harmonic_mlp", fraction=MAIN_FRACTION, **wanted)
    return [row for row in runs if row["kind"] in ("main", "exponents")]


def lattice_needs_either(rows: Rows):
    """Either ingredient alone makes the lattice flatter than the standard model's."""
    compared = []
    for architecture in ARCHITECTURES:
        base = values(_side(rows, "in_context", f"standard_{architecture}"), two_components)
        for head in ("euclidean_softmax", "dot_harmax"):
            ours = values(_side(rows, "in_context", f"{head}_{architecture}"), two_components)
            if len(ours) and len(base):
                compared.append((f"{head} {architecture}", compare(ours, base, True)))
    return _told(compared, "variance in two components, against standard")


def addition_needs_both(rows: Rows):
    """The harmonic model's circle is better than that of either ingredient alone."""
    compared = []
    for architecture in ARCHITECTURES:
        ours = values(_side(rows, "modular_addition", f"harmonic_{architecture}"), named("structure"))
        for head in ("euclidean_softmax", "dot_harmax"):
            base = values(_side(rows, "modular_addition", f"{head}_{architecture}"), named("structure"))
            if len(ours) and len(base):
                compared.append((f"harmonic and {head} {architecture}", compare(ours, base, False)))
    return _told(compared, "circle deviation")


def other_losses(rows: Rows):
    compared = []
    for name in TASKS:
        for architecture in ARCHITECTURES:
            for head in ("contrastive", "spherical"):
                ours, base = (_side(rows, name, f"{h}_{architecture}") for h in ("harmonic", head))
                if ours and base:
                    comparison = compare(values(ours, two_components), values(base, two_components), True)
                    compared.append((f"{task(name).title} {architecture} and {head}", comparison))
    return _told(compared, "variance in two components")


def best_exponent(rows: Rows):
    """n = 1 of the sweep (2 on the distance in the code's reading) is not beaten on the task's structure."""
    details, parts = [], []
    for name in TASKS:
        runs = _swept(rows, name)
        exponents = sorted({row["exponent"] for row in runs})
        if len(exponents) < 3:
            continue
        medians = {}  # n: accuracy, explained variance
        for n in exponents:
            at_n = select(runs, exponent=n)
            medians[n] = tuple(float(np.median(values(at_n, f))) for f in (named("test_accuracy"), two_components))
        # Test accuracy first, to two digits, then compression
        best = max(exponents, key=lambda n: (round(medians[n][0], 2), medians[n][1]))
        listed = ", ".join(f"{n:g}: {a:.2f}/{ev:.2f}" for n, (a, ev) in medians.items())
        details.append(
            f"{task(name).title}, n on the distance: accuracy/variance in two components: {listed}; best {best:g}"
        )
        parts.append("holds" if best in (1.0, CODE_EXPONENT) else "does not hold")
    return details, parts


def exponent_convention(rows: Rows):
    """Which reading of "n = 1" gives the paper's own outcome (flat lattices; circles in most seeds)?"""
    details, parts = [], []
    for reading, n in (("code, n = 2 on the distance", CODE_EXPONENT), ("paper, n = 1 on the distance", 1.0)):
        good = []
        for name in ("in_context", "modular_addition"):
            runs = _swept(rows, name, exponent=n)
            if runs:
                flat = int((values(runs, two_components) > FLAT).sum())
                learned = float(np.median(values(runs, named("test_accuracy"))))
                good.append(f"{task(name).title} {flat} of {len(runs)} flat, test accuracy {learned:.2f}")
                if n == CODE_EXPONENT:
                    parts.append("holds" if flat > len(runs) / 2 else "does not hold")
        if good:
            details.append(f"{reading}: {', '.join(good)}")
    return details, parts


def case_study(rows: Rows):
    details, learned = [], {}
    for head, decay in CASES:
        runs = select(rows, kind="case", model=f"{head}_mlp", weight_decay=decay)
        if runs:
            accuracies, explained = values(runs, named("test_accuracy")), values(runs, two_components)
            learned[head, decay] = (accuracies > LEARNED).mean()
            details.append(
                f"{head}, decay {decay}: {int((accuracies > LEARNED).sum())} of {len(runs)} seeds generalize, median "
                f"test accuracy {np.median(accuracies):.2f}, variance in two components {np.median(explained):.2f}"
            )
    if len(learned) < len(CASES):
        return details, []
    return details, [
        "holds" if learned["harmonic", 0.0] > 0.5 else "does not hold",
        "holds" if learned["standard", 0.0] < 0.5 else "does not hold",
        "holds" if learned["standard", 0.5] > 0.5 else "does not hold",
    ]


# What the paper says, and the function that judges it: rows of one protocol -> (what was measured, verdicts)
CLAIMS: dict[str, Callable[[Rows], tuple[list[str], list[str]]]] = {
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
