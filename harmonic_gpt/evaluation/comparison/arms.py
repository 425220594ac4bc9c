"""Arms of one or more runs (seeds), and the headlines that compare two of them."""

import numpy as np

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.measures.bootstrap import difference_over_runs, percentile_interval, sign_test, spread

# key -> (label, higher is better). None of these can be won by collapse; measures of compression can, so they are not
# here.
HEADLINES = {
    "nats": ("validation nats a token", False),
    "parallelogram": ("parallelogram loss / shuffled pairs, without the first component", False),
    "offset_cosine": ("cosine of offsets of one relation, without the first component", True),
    "analogies": ("analogies answered within 5, by distance", True),
    "class_centers": ("cosine of center and mean context", True),
    "probes": ("logistic probes of layers, macro F1", True),
}


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
    arms: dict[str, list[int]], measures: list[dict], ratios: list[dict[str, np.ndarray]], paper: list[dict[str, tuple]]
) -> dict:
    """Every headline of every arm, and the differences of the first arm from each other one.

    Args:
        arms: name -> indices of its models. measures: of each model, {headline: (value, bootstrap replicates)}; empty
            replicates: nothing is known of the value's uncertainty within one run. ratios: of each model, {task:
            replicates}.
        paper: of each model, {task: (mean loss, the same of shuffled pairs)} in the paper's protocol.
    Over seeds the interval is Welch's; with one run in an arm it is the paired bootstrap over words, tokens or queries,
    which says nothing of other seeds.
    """
    headlines = {}
    for key, (label, higher) in HEADLINES.items():
        held = {arm: [measures[i][key] for i in members if key in measures[i]] for arm, members in arms.items()}
        headlines[key] = {
            "label": label,
            "higher_is_better": higher,
            "arms": {
                arm: spread([v for v, _ in found]) | {"interval": _interval(found)} if found else None
                for arm, found in held.items()
            },
        }
    first, *others = arms
    differences = [_difference(first, other, arms, measures, ratios, paper) for other in others]
    return {
        "arms": {arm: list(members) for arm, members in arms.items()},
        "headlines": headlines,
        "differences": differences,
    }


def _interval(found: list[tuple[float, np.ndarray]]) -> list[float] | None:
    return percentile_interval(found[0][1]) if len(found) == 1 else None


def _difference(a: str, b: str, arms: dict, measures: list[dict], ratios: list[dict], paper: list[dict]) -> dict:
    rows = {}
    for key, (_, higher) in HEADLINES.items():
        left, right = ([measures[i][key] for i in arms[arm] if key in measures[i]] for arm in (a, b))
        if not left or not right:
            rows[key] = {"difference": None, "interval": None, "over": None, "better": None}
            continue
        gap = float(np.mean([v for v, _ in left]) - np.mean([v for v, _ in right]))
        over = "seeds"
        limits = difference_over_runs([v for v, _ in left], [v for v, _ in right])
        if limits is None:
            over = "words and tokens of one run"
            mean_left, mean_right = (np.mean([r for _, r in side], axis=0) for side in (left, right))
            limits = percentile_interval(mean_left - mean_right) if np.size(mean_left) else None
        sure = limits is not None and (limits[0] > 0 or limits[1] < 0)
        rows[key] = {
            "difference": gap,
            "interval": limits,
            "over": over if limits else None,
            "better": ((a if (gap > 0) == higher else b) if sure else None),
        }
    won, lost, undecided = [], [], []
    tasks = _common(arms[a] + arms[b], ratios)
    for task in tasks:
        replicates = [np.mean([ratios[i][task] for i in arms[arm]], axis=0) for arm in (a, b)]
        low, high = percentile_interval(replicates[0] - replicates[1]) or (0, 0)
        (won if high < 0 else lost if low > 0 else undecided).append(task)
    return {
        "first": a,
        "second": b,
        "headlines": rows,
        "tasks": {
            "compared": len(tasks),
            "won": won,
            "lost": lost,
            "undecided": undecided,
            "sign_test_p": sign_test(len(won), len(lost)),
        },
        "paper_tasks": _paper_tasks(arms[a], arms[b], paper),
    }


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
