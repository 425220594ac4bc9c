"""Arms of one or more runs (seeds), and the headlines that compare two of them."""

from typing import NamedTuple

import numpy as np

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.measures.bootstrap import (
    paired_interval,
    percentile_interval,
    sign_test,
    spread,
    welch_interval,
)

Measure = tuple[float, np.ndarray]  # (value, bootstrap replicates; empty where not known)
Measures = dict[str, Measure]  # headline or task -> its measure
PAIRED = "paired by seed"


class Run(NamedTuple):
    """A measure of one run."""

    seed: int | None  # None: not known, as of a model that was not trained here
    value: float
    replicates: np.ndarray  # of its bootstrap; empty where not known


class Headline(NamedTuple):
    """A number that two arms are compared by."""

    name: str  # in a sentence
    label: str  # in a table
    higher_is_better: bool


# None of these can be won by collapse; measures of compression can, so they are not here
HEADLINES = {
    "nats": Headline("validation loss", "validation loss (nats per token)", False),
    "rare_tokens": Headline("rare tokens", "which rare token comes, given that one does (nats)", False),
    "parallelogram": Headline(
        "parallelogram loss", "parallelogram loss / shuffled pairs, without the first component", False
    ),
    "offset_cosine": Headline(
        "cosine of offsets", "cosine of offsets of one relation, without the first component", True
    ),
    "analogies": Headline("analogies", "analogies answered within 5, by distance", True),
    "class_centers": Headline("class centers", "cosine of center and mean context", True),
    "own_center": Headline("own center", "own center: mean of 1 / rank by distance from the mean context", True),
    "label_distance": Headline("label distance", "distance to the label's center / to another position's label", False),
    "lens_agreement": Headline(
        "lens agreement", "lens: inner layers agree with the output, where it depends on the context", True
    ),
    "tuned_lens": Headline("tuned lens", "the same through a tuned lens", True),
    "probes": Headline("probes", "logistic probes of layers, macro F1", True),
}

PREDICTION = ("nats", "rare_tokens")  # the others are measures of reading


def interval_kinds(rows: dict[str, dict]) -> dict[str, list[str]]:
    """{method of intervals, or what they are over: keys of the headlines} of a difference of two arms, the commonest
    first. rows: its headlines; in results of an older version they have no method."""
    kinds: dict[str, list[str]] = {}
    for key, row in rows.items():
        if row["interval"]:
            kinds.setdefault(row.get("method") or f"over {row['over']}", []).append(key)
    return dict(sorted(kinds.items(), key=lambda kind: -len(kind[1])))


def parse_arms(arguments: list[str]) -> dict[str, list[str]]:
    """{arm: models} from `--arm NAME MODEL... --arm NAME MODEL...`, or from models alone: each its own arm, named by
    its path.

    Raises InputError for a model before the first --arm, an arm without models or named twice, an unknown option.
    """
    if "--arm" not in arguments:
        if len(set(arguments)) < len(arguments):
            raise InputError(f"the same weights are named twice: {', '.join(arguments)}")
        arms = {model: [model] for model in arguments}
    else:
        arms, rest = {}, list(arguments)
        if rest[0] != "--arm":
            raise InputError(
                f"{rest[0]!r} stands before the first --arm; expected --arm NAME MODEL... --arm NAME MODEL..."
            )
        while rest:
            rest.pop(0)  # --arm
            end = rest.index("--arm") if "--arm" in rest else len(rest)
            name, models, rest = (rest[0] if end else None), rest[1:end], rest[end:]
            if name is None or not models:
                raise InputError(f"--arm {name or ''}: expected --arm NAME MODEL..., got no model")
            if name in arms:
                raise InputError(f"--arm {name} is there twice; name all its models after one --arm")
            arms[name] = models
    if unknown := [word for models in arms.values() for word in models if word.startswith("-")]:
        raise InputError(f"unknown option {unknown[0]}; see --help")
    return arms


def compare_arms(
    arms: dict[str, list[int]],
    measures: list[Measures],
    ratios: list[Measures],
    paper: list[dict[str, tuple[float, float]]],
    seeds: list[int | None],
) -> dict:
    """Every headline of every arm, and the differences of the first arm from each other one.

    Args:
        arms: name -> indices of its models. measures: of each model, by headline. ratios: of each model, by task.
        paper: of each model, {task: (mean loss, the same of shuffled pairs)} in the paper's protocol.
        seeds: of each model; None: not known.
    Over seeds an interval is the paired t where both arms have the same seeds, each once: such runs share initial
    weights and order of the data, so that much of what a seed does to them cancels. Else it is Welch's t. With one run
    in an arm it is the paired bootstrap over words, tokens or queries, which says nothing of other seeds.
    """
    headlines = {}
    for key, headline in HEADLINES.items():
        held = {arm: _runs(key, members, measures, seeds) for arm, members in arms.items()}
        headlines[key] = headline._asdict() | {"arms": {arm: _summary(runs) for arm, runs in held.items()}}
    first, *others = arms
    return {
        "arms": {arm: list(members) for arm, members in arms.items()},
        "headlines": headlines,
        "differences": [_difference(first, other, arms, measures, ratios, paper, seeds) for other in others],
    }


def _runs(key: str, members: list[int], measures: list[Measures], seeds: list[int | None]) -> list[Run]:
    """Of the runs of an arm, those that have the measure."""
    return [Run(seeds[i], *measures[i][key]) for i in members if key in measures[i]]


def _summary(runs: list[Run]) -> dict | None:
    """A headline of one arm over its runs; the interval of a single run is that of its bootstrap."""
    if not runs:
        return None
    interval = percentile_interval(runs[0].replicates) if len(runs) == 1 else None
    return spread([run.value for run in runs]) | {"interval": interval}


def _difference(
    a: str,
    b: str,
    arms: dict[str, list[int]],
    measures: list[Measures],
    ratios: list[Measures],
    paper: list[dict],
    seeds: list[int | None],
) -> dict:
    rows = {}
    for key in HEADLINES:
        left, right = (_runs(key, arms[arm], measures, seeds) for arm in (a, b))
        rows[key] = _headline_difference(key, a, b, left, right)
    outcomes: dict[str, list[str]] = {"won": [], "lost": [], "undecided": []}
    tasks, over, method = _common(arms[a] + arms[b], ratios), None, None
    for task in tasks:
        interval, over, method = _interval(*(_runs(task, arms[arm], ratios, seeds) for arm in (a, b)))
        low, high = interval or (0, 0)
        outcomes["won" if high < 0 else "lost" if low > 0 else "undecided"].append(task)
    return {
        "first": a,
        "second": b,
        "headlines": rows,
        "tasks": {
            "compared": len(tasks),
            "over": over,
            "method": method,
            **outcomes,
            "sign_test_p": sign_test(len(outcomes["won"]), len(outcomes["lost"])),
        },
        "paper_tasks": _paper_tasks(arms[a], arms[b], paper),
    }


def _headline_difference(key: str, a: str, b: str, left: list[Run], right: list[Run]) -> dict:
    """a - b with its 95 % interval, what that is over and by which method, and who is better where it leaves out
    zero."""
    if not left or not right:
        return {"difference": None, "interval": None, "over": None, "method": None, "better": None}
    gap = float(np.mean([run.value for run in left]) - np.mean([run.value for run in right]))
    interval, over, method = _interval(left, right)
    sure = interval is not None and (interval[0] > 0 or interval[1] < 0)
    leader = a if (gap > 0) == HEADLINES[key].higher_is_better else b
    return {
        "difference": gap,
        "interval": interval,
        "over": over if interval else None,
        "method": method,
        "better": leader if sure else None,
    }


def _interval(left: list[Run], right: list[Run]) -> tuple[list[float] | None, str, str | None]:
    """95 % interval of mean(left) - mean(right), what it is over (seeds, with several runs on both sides), and by which
    method; None for a bootstrap."""
    method = _method([run.seed for run in left], [run.seed for run in right])
    if method == PAIRED:
        right_of = {run.seed: run for run in right}
        right = [right_of[run.seed] for run in left]
    over_runs = paired_interval if method == PAIRED else welch_interval
    if interval := over_runs([run.value for run in left], [run.value for run in right]):
        return interval, "seeds", method
    mean_left, mean_right = (np.mean([run.replicates for run in side], axis=0) for side in (left, right))
    interval = percentile_interval(mean_left - mean_right) if np.size(mean_left) else None
    return interval, "words and tokens of one run", None


def _method(left: list[int | None], right: list[int | None]) -> str:
    """How an interval over runs of these seeds is made; where they are no pairs, with the reason."""
    if None in (*left, *right):
        return "Welch, seeds not known"
    if set(left) != set(right):
        return "Welch, seeds differ"
    return PAIRED if len(set(left)) == len(left) == len(right) else "Welch, seeds repeat"


def _common(members: list[int], tasks: list[dict]) -> list[str]:
    return sorted(set.intersection(*(set(tasks[i]) for i in members)))


def _paper_tasks(a: list[int], b: list[int], paper: list[dict[str, tuple]]) -> dict:
    """In how many tasks an arm has the lower mean loss of equation 3: the paper's claim. If it is lower for shuffled
    pairs as well, that says nothing of the pairs."""
    tasks = _common(a + b, paper)
    gaps = {
        task: np.mean([paper[i][task] for i in a], axis=0) - np.mean([paper[i][task] for i in b], axis=0)
        for task in tasks
    }
    lower, higher = ([task for task, gap in gaps.items() if gap[0] * sign > 0] for sign in (-1, 1))
    shuffled = [task for task, gap in gaps.items() if gap[1] < 0]
    return {
        "compared": len(tasks),
        "lower": lower,
        "higher": higher,
        "sign_test_p": sign_test(len(lower), len(higher)),
        "shuffled_lower": shuffled,
    }
