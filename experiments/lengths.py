"""What weight decay does to the lengths of centers and to logits: by value, towards a length, over many steps."""

from collections.abc import Iterable
from pathlib import Path

from report import arm_of, markdown_table
from verdicts import ARMS

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS, subplots

DECAY = "optim.weight_decay"
GROWTH = "ten times the steps"  # questions of protocol.yaml, and which text they are about
TO_LENGTH = {
    "decay to a length": "all",
    "decay to a length, 4 epochs": "a sixteenth",
    "decay to a length, 16 epochs": "a sixty-fourth",
}
LITTLE = ("regularization, 16 epochs", "regularization of r = 1, 16 epochs")
BOUNDED = {
    "fixed gain": "all",
    "fixed gain, 4 epochs": "a sixteenth",
    "fixed gain, 16 epochs": "a sixty-fourth",
    "confidence, 16 epochs": "a sixty-fourth",
}
CHANGES = {"model.exponent": "n = {:g}", "train.label_smoothing": "label smoothing {:g}"}
GROWN = {  # what trials.watch_growth looks at
    "center_length": "length of centers",
    "hidden_length": "length of hidden states",
    "logit_std": "std of a position's logits",
    "largest_logit": "largest logit above their mean",
}


def along(
    rows: list[dict], setting: str = DECAY, questions: tuple[str, ...] = ("certificate",), size: str = "2x128"
) -> str:
    """Markdown: what a setting alone does to the loss and to the mean length of the centers, of the questions' runs
    with seed 0: of each arm where most values of it were tried, and of such places at the one of least loss."""
    tried: dict[str, dict[str, dict[float, dict]]] = {}
    for row in rows:
        if row["question"] in questions and (row["size"], row["seed"]) == (size, 0):
            others = str(sorted((k, v) for k, v in row["set"].items() if k != setting))
            tried.setdefault(arm_of(row), {}).setdefault(others, {})[row["set"][setting]] = row

    def place(by_value: dict[float, dict]) -> tuple[int, float]:
        return len(by_value), -min(row["val_loss"] for row in by_value.values())

    most = {arm: max(tried[arm].values(), key=place) for arm in ARMS if arm in tried}
    lines = []
    for value in sorted({value for by_value in most.values() for value in by_value}):
        cells = [f"{value:g}"]
        for by_value in most.values():
            row = by_value.get(value)
            cells += [f"{row['val_loss']:.3f}", f"{row['center_norms'][-1][1]:.2f}"] if row else ["", ""]
        lines.append(cells)
    named = " | ".join(f"{ARMS.get(arm, arm)}, loss | length of centers" for arm in most)
    return markdown_table(f"{setting.split('.')[1].replace('_', ' ')} | {named}", lines) if lines else ""


def to_length(rows: list[dict]) -> str:
    """Markdown: decay of the centers towards a length beside decay towards zero, the same arm, settings and seed."""
    lines = []
    for row in rows:
        if row["question"] not in TO_LENGTH:
            continue
        arm, steps = arm_of(row), row["settings"]["train.steps"]
        plain = [one for one in rows if not one["trial"] and _same_but(one, row)]
        measured = [_loss_and_length(one) for one in (plain[0] if plain else None, row)]
        which = [TO_LENGTH[row["question"]], ARMS.get(arm, arm), f"{steps}", f"{row['set'][DECAY]:g}"]
        lines.append([*which, *measured[0], *measured[1]])
    columns = "text | arm | steps | weight decay | towards 0, loss | length of centers | towards 1, loss | length"
    return markdown_table(columns, lines) if lines else ""


def confidence(rows: list[dict]) -> str:
    """Markdown: what bounds the confidence of a head: a fixed gain of the final layer norm, or a smaller n; beside the
    same run without, where there is one."""
    plain = [row for row in rows if not row["trial"] and row["question"] not in BOUNDED]
    lines = []
    for row in (row for row in rows if row["question"] in BOUNDED and row["seed"] == 0):
        fixed = "fixed_gain" in row["trial"]
        ignored = () if fixed else tuple(CHANGES)  # of a fixed gain the run with the same n is wanted
        beside = next((one for one in plain if _same_but(one, row, ignored)), None)
        own, start = row["set"], beside["set"] if beside else row["set"]
        changed = ["gain fixed"] * fixed
        changed += [text.format(own[name]) for name, text in CHANGES.items() if own.get(name) != start.get(name)]
        if changed:
            settings = [f"{own[name]:g}" if name in own else "-" for name in ("model.exponent", DECAY, "optim.lr")]
            settings.append(f"{row['settings']['train.steps']}")
            losses = [f"{beside['val_loss']:.3f}" if beside else "", f"{row['val_loss']:.3f}"]
            lines.append([BOUNDED[row["question"]], ARMS[arm_of(row)], *settings, ", ".join(changed), *losses])
    columns = "text | arm | n | weight decay | learning rate | steps | change | loss without it | with it"
    return markdown_table(columns, lines) if lines else ""


def _same_but(one: dict, other: dict, ignored: tuple[str, ...] = ()) -> bool:
    """Whether two runs have one arm, size, seed and settings, but for those that are ignored. How often a run is
    evaluated changes no loss."""

    def key(row: dict) -> tuple:
        chosen = {name: value for name, value in row["set"].items() if name not in ("eval.every", *ignored)}
        return arm_of(row), row["size"], row["seed"], str(sorted(chosen.items()))

    return key(one) == key(other)


def _loss_and_length(row: dict | None) -> list[str]:
    return [f"{row['val_loss']:.3f}", f"{row['center_norms'][-1][1]:.2f}"] if row else ["", ""]


def grown(rows: list[dict], questions: Iterable[str] = (GROWTH,)) -> dict[tuple[str, float, bool], list[dict]]:
    """(arm, weight decay, gain fixed) -> what was looked at along training, of the longest run."""
    asked = [row for row in rows if row["question"] in questions and "growth" in row["measured"]]
    asked.sort(key=lambda row: len(row["measured"]["growth"]))
    return {(arm_of(row), row["set"][DECAY], "fixed_gain" in row["trial"]): row["measured"]["growth"] for row in asked}


def growth(
    rows: list[dict], steps: tuple[int, ...] = (400, 1000, 2000, 4000), questions: Iterable[str] = (GROWTH,)
) -> str:
    """Markdown: lengths and logits at some steps, a line for each arm and weight decay, and a column for each step."""
    lines = []
    for (arm, decay, fixed), looks in grown(rows, questions).items():
        at = {look["step"]: look for look in looks}
        for key, name in GROWN.items():
            named = ARMS.get(arm, arm) + ", gain fixed" * fixed
            lines.append([named, f"{decay:g}", name, *(f"{at[step][key]:.2f}" for step in steps)])
    return markdown_table(f"arm | weight decay | | {' | '.join(f'{s:,} steps' for s in steps)}", lines) if lines else ""


def draw_growth(path: Path, rows: list[dict]) -> None:
    """Length of the centers and spread of the logits along training; dotted: without weight decay."""
    figure, (panels,) = subplots(1, 2, 9, 3.8)
    for (arm, decay, _), looks in sorted(grown(rows).items()):
        color = HEAD_COLORS["standard" if arm == "standard" else "harmonic"]
        style = "-" if decay else ":"
        label = f"{'harmonic, ' if arm != 'standard' else ''}{ARMS.get(arm, arm)}, weight decay {decay:g}"
        for axes, key in zip(panels, ("center_length", "logit_std"), strict=True):
            steps, values = [look["step"] for look in looks], [look[key] for look in looks]
            axes.plot(steps, values, style, color=color, lw=2, label=label)
            axes.set(xlabel="step", ylabel=GROWN[key])
    for axes in panels:
        axes.set_ylim(bottom=0)  # once all lines are there: it keeps the top
        axes.grid(color="0.92")
    panels[1].set_ylabel("std of a position's logits, nats")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
