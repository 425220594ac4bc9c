"""Whether the settings that were chosen are the best near them: the searches, and the neighbors of what they found."""

from statistics import mean

from queue_file import TIMES, ArmSearch
from report import arm_of, markdown_table
from verdicts import ARMS, TUNED, spaced

# Questions of protocol.yaml: at which size and with which seed they were asked
AT_BEST, AT_LARGEST = "neighbors of the best", "neighbors at 6x384"
# Of each arm the question that tries every setting
CERTIFICATES = {"harmonic": "neighbors at eps 1e-6", TUNED: AT_BEST, "standard": "neighbors at eps 1e-8"}
NEIGHBORS = {**dict.fromkeys(CERTIFICATES.values(), ("2x128", 0)), AT_LARGEST: ("6x384", 10)}
EVERY = 400  # eval.every of these runs and of the frontier; the searches evaluated more often
NAMES = {
    "optim.betas": "AdamW's beta2",
    "optim.lr": "learning rate",
    "optim.head_lr_scale": "rate of the head, times",
    "optim.weight_decay": "weight decay",
    "optim.eps": "AdamW's eps",
    "model.exponent": "n",
    "model.center_std": "std of the centers",
}
BASE = {"optim.eps": 1e-5}  # what the queue gives all runs, and no row names


Settings = tuple[tuple[str, str | float | tuple], ...]  # what a run has set, as a key
Losses = dict[Settings, float]  # nats per token


def neighbors(rows: list[dict], asked: dict[str, str] = CERTIFICATES) -> str:
    """Markdown: for each setting its best value of both heads, and what its neighbors lose. asked: the question of each
    arm."""
    arms = {arm: found for arm, question in asked.items() if (found := neighborhood(rows, arm, question))}
    lines: list[list[str]] = []
    for setting, name in NAMES.items():
        cells = []
        for center, losses in arms.values():
            tried = {dict(point).get(setting, BASE.get(setting)): loss for point, loss in losses.items()}
            best = dict(center).get(setting, BASE.get(setting))
            gaps = {value: loss - losses[center] for value, loss in tried.items() if value != best}
            others = [f"{value_text(value)}: {gap:+.4f}" for value, gap in sorted(gaps.items())]
            cells.append(f"**{value_text(best)}** ({', '.join(others)})" if others else "")
        if any(cells):
            lines.append([name, *cells])
    _, seed = NEIGHBORS[next(iter(asked.values()))]
    lines.append(
        [f"nats per token at the best, seed {seed}", *(f"{losses[best]:.4f}" for best, losses in arms.values())]
    )
    whole = asked == CERTIFICATES
    lines.append(["", *(said(center, losses, whole) for center, losses in arms.values())])
    return markdown_table(f"setting | {' | '.join(ARMS[arm] for arm in arms)}", lines) if arms else ""


def neighborhood(rows: list[dict], arm: str, question: str) -> tuple[Settings, Losses] | None:
    """The center, from which every run of the question differs in one setting, and the losses of all of them."""
    (size, seed), losses = NEIGHBORS[question], {}
    asked = set()
    for row in rows:
        watched = all(name.startswith("watch_") for name in row["trial"])
        plain = watched and "data.dir" not in row["set"] and row["set"].get("eval.every") == EVERY
        if plain and (arm_of(row), row["size"], row["seed"]) == (arm, size, seed):
            point = tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in row["set"].items()))
            losses[point] = row["val_loss"]
            if row["question"] == question:
                asked.add(point)
    centers = [point for point in losses if asked and all(_differences(point, other) == 1 for other in asked)]
    if not centers:  # it was asked for as well
        centers = [point for point in asked if all(_differences(point, other) <= 1 for other in asked)]
    if len(centers) != 1:
        return None
    return centers[0], {point: loss for point, loss in losses.items() if _differences(point, centers[0]) <= 1}


def _differences(a: Settings, b: Settings) -> int:
    one, other = dict(a), dict(b)
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def said(center: Settings, losses: Losses, whole: bool) -> str:
    """How many neighbors are worse, or what the best of them would gain; neither while a setting has no neighbor, where
    the whole neighborhood is asked for."""
    others, best = [point for point in losses if point != center], BASE | dict(center)
    ladders = best.keys() & NAMES.keys() - ({"model.center_std"} if "model.exponent" in best else set())
    untried = [name for name in ladders if all((BASE | dict(point))[name] == best[name] for point in others)]
    if not others or (untried and whole):
        return f"not all neighbors are trained yet; {len(losses)} runs"
    gain = losses[center] - min(losses[point] for point in others)
    told = f"**a neighbor gains {gain:.4f}**" if gain >= 0 else f"all {len(others)} neighbors are worse"
    return f"{told}; {len(losses)} runs"


def certificates(searches: list[ArmSearch]) -> str:
    """Markdown: every search that has a run: its best setting, and what each ladder's values lose."""
    lines = ["| arm | size | runs | best, and what its neighbors lose (nats per token) |", "|---|---|---|---|"]
    for one in searches:
        center = one.state.center
        trained = sum(one.loss(point, seed) is not None for point, seed in one.state.asked)
        loss = one.loss(center, one.seeds[0])
        if not trained or loss is None:
            continue
        ladders = [_ladder(one, axis, name) for axis, name in enumerate(one.ladders)]
        cells = [
            ARMS.get(one.arm, one.arm),
            spaced(one.size),
            str(trained),
            f"{loss:.4f} at {'; '.join(ladders)}",
        ]
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
            others.append(f"{value_text(value)}: {mean(gaps):+.4f}")
    short = name.removeprefix(TIMES).split(".")[-1] + (" x" if name.startswith(TIMES) else "")
    return f"{short} **{value_text(values[center[axis]])}**" + (f" ({', '.join(others)})" if others else "")


def value_text(value: object) -> str:
    """Of betas, the second."""
    return f"{value[1]:g}" if isinstance(value, (list, tuple)) else f"{value:g}"
