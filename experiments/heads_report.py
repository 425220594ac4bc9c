"""Which head is best: the tables and the picture of docs/results/heads.md, from the rows of heads.yaml."""

from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from queue_file import TIMES, ArmSearch, losses_of, read_searches
from report import SeedPairs, arm_of, difference, interval, markdown_table, number_at, paired

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS

QUEUE = Path(__file__).with_name("heads.yaml")
READING = ("lens_agreement", "label_distance", "own_center")
NAMES = {
    "quarter": "harmonic, r = 1/4",
    "harmonic": "harmonic, r = 1",
    "learned": "harmonic, r = 1, learned n and scale",
    "prior": "harmonic, r = 1, unigram prior",
    "standard_prior": "standard, unigram prior",
}
# of arXiv 2603.10225: (what it says, arm, baseline); lower loss is better
CLAIMS = (
    ("cosine predicts better than cross-entropy", "cosine_harmonic", "standard"),
    ("cosine predicts better than Euclidean distance, r = 1", "cosine_harmonic", "harmonic"),
    ("cosine predicts better than Euclidean distance, r = 1/4", "cosine_harmonic", "quarter"),
)


def name_of(arm: str) -> str:
    return NAMES.get(arm, arm)


def searches(rows: list[dict]) -> list[ArmSearch]:
    """Where the screening of every head stands."""
    return read_searches(QUEUE, losses_of(rows))


def screened(searches: list[ArmSearch]) -> list[tuple[float, str, str]]:
    """(best loss, arm, settings found) of every arm, best first."""
    found = []
    for one in searches:
        tried = {point: one.loss(point, seed) for point, seed in one.state.asked}
        losses = {point: loss for point, loss in tried.items() if loss is not None}
        if losses:
            best = min(losses, key=losses.__getitem__)
            found.append((losses[best], one.arm, _settings(one.settings(best))))
    return sorted(found)


def _settings(chosen: dict) -> str:
    cells = []
    for name, value in chosen.items():
        short = name.removeprefix(TIMES).split(".")[-1]
        if isinstance(value, dict):
            cells += [f"{key} {number:g}" for key, number in value.items()]
        else:
            cells.append(f"rate of the head x {value:g}" if name.startswith(TIMES) else f"{short} {value:g}")
    return ", ".join(cells)


def compared(rows: list[dict], baseline: str = "standard") -> dict[str, SeedPairs]:
    """arm -> (seed, its loss, the baseline's), of the fresh seeds."""
    fresh = [row for row in rows if row["question"] == "comparison"]
    return {arm: pairs for (_, _, arm), pairs in paired(fresh, baseline=baseline).items()}


def table(rows: list[dict], searches: list[ArmSearch]) -> str:
    """Markdown: a line for each head, best screening loss first."""
    lines = []
    pairs = compared(rows)
    for loss, arm, settings in screened(searches):
        fresh = [row for row in rows if row["question"] == "comparison" and arm_of(row) == arm]
        cells = [name_of(arm), f"{loss:.3f}", settings]
        cells.append("0" if arm == "standard" and fresh else difference(pairs[arm]) if arm in pairs else "")
        for key in READING:
            values = [v for row in fresh if (v := number_at(row, f"reading.{key}")) is not None]
            cells.append(f"{mean(values):.3f}" if values else "")
        lines.append(cells)
    measures = " | ".join(READING).replace("_", " ")
    return markdown_table(f"head | screening, nats | found at | fresh seeds: minus standard | {measures}", lines)


def claims(rows: list[dict]) -> str:
    """Markdown: what arXiv 2603.10225 says, with verdicts; last, what its baseline's label smoothing does."""
    lines = []
    for text, arm, baseline in CLAIMS:
        if pairs := compared(rows, baseline).get(arm):
            lines.append([text, verdict(pairs), difference(pairs)])
    if smoothed := _smoothed(rows):
        text = "(not a claim: what the label smoothing of its cross-entropy baseline, 0.1, does to the standard head)"
        lines.append([text, verdict(smoothed, better="better", worse="worse"), difference(smoothed)])
    return markdown_table("arXiv 2603.10225 says | here | difference, nats [95 %]", lines) if lines else ""


def verdict(pairs: SeedPairs, better: str = "holds", worse: str = "does not hold") -> str:
    """By the sign of the interval; over three seeds it is wide."""
    limits = interval(pairs)
    if limits is None or limits[0] <= 0 <= limits[1]:
        return "no difference shown"
    return better if limits[1] < 0 else worse


def _smoothed(rows: list[dict]) -> SeedPairs:
    """(seed, loss with label smoothing, loss without) of the standard head."""
    with_it = {row["seed"]: row["val_loss"] for row in rows if row["question"] == "their baseline"}
    fresh = [row for row in rows if row["question"] == "comparison" and arm_of(row) == "standard"]
    return [(row["seed"], with_it[row["seed"]], row["val_loss"]) for row in fresh if row["seed"] in with_it]


def costs(rows: list[dict]) -> str:
    """Markdown: time of each head's loss, forward and backward, over harmonic's, cheapest first."""
    lines = []
    for row in sorted(rows, key=lambda row: row["wall_ratio"]):
        low, high = row["wall_quartiles"]
        lines.append([row["head"], f"{row['wall_ratio']:.3f} [{low:.3f}, {high:.3f}]"])
    return markdown_table("head or option | time / harmonic's, median [quartiles]", lines)


def draw(rows: list[dict], searches: list[ArmSearch], path: Path) -> None:
    """Left: best screening loss of every head. Right: difference to standard over the fresh seeds, with intervals."""
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    found = screened(searches)[::-1]
    worst = found[-1][0] + 0.12  # what lies far outside is written as a number
    for place, (loss, arm, _) in enumerate(found):
        left.plot(min(loss, worst), place, "o" if loss <= worst else ">", color=_color(arm), ms=8)
        left.annotate(f"{loss:.3f}", (min(loss, worst), place), (7, -3.5), textcoords="offset points", fontsize=8)
    left.set_yticks(range(len(found)), [name_of(arm) for _, arm, _ in found], fontsize=9)
    left.set(xlabel="validation loss, nats per token", xlim=(found[-1][0] - 0.01, worst + 0.02))
    left.set_title("Screening: best of five runs, seed 0", fontsize=10, loc="left")
    pairs = sorted(compared(rows).items(), key=lambda item: -mean(a - b for _, a, b in item[1]))
    for place, (arm, three) in enumerate(pairs):
        _interval(right, place, three, _color(arm))
    right.axvline(0, color=HEAD_COLORS["standard"], lw=1)
    right.set_yticks(range(len(pairs)), [name_of(arm) for arm, _ in pairs], fontsize=9)
    right.set(xlabel="minus standard, nats")
    right.set_title("Three fresh seeds, 95 %", fontsize=10, loc="left")
    for axes in (left, right):
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _interval(axes, place: int, pairs: SeedPairs, color: str) -> None:
    gap, limits = mean(ours - theirs for _, ours, theirs in pairs), interval(pairs)
    if limits is not None:
        axes.plot(limits, [place, place], color=color, lw=2)
    axes.plot(gap, place, "o", color=color, ms=8)


def _color(arm: str) -> str:
    if arm.startswith("standard"):
        return HEAD_COLORS["standard"]
    return HEAD_COLORS["harmonic"] if arm in NAMES else "0.45"
