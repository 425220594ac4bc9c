"""Can a setting of the standard head tell rare tokens apart as well? Both heads' neighbors of the best, read for it.

The rule: PROTOCOL.md, U10.
"""

from pathlib import Path
from typing import NamedTuple

from certificates import AT_BEST, BASE, CERTIFICATES, NAMES, NEIGHBORS, neighborhood, value_text
from report import arm_of, markdown_table, number_at
from verdicts import ARMS, TUNED, once

from harmonic_gpt.evaluation.comparison.canvas import HEAD_COLORS, subplots

NEAR = 0.01  # nats per token above a head's least loss
OWN = "nothing"


class Point(NamedTuple):
    arm: str
    changed: str  # what differs from the setting that the protocol chose, OWN where nothing does
    loss: float  # nats per token
    which: float  # nats per rare target, for which rare token it is
    which_other: float  # the same of all other targets


def points(rows: list[dict]) -> list[Point]:
    """Of every setting that was read; the chosen ones first."""
    found, (_, seed) = [], NEIGHBORS[AT_BEST]
    for arm, question in CERTIFICATES.items():
        near = neighborhood(rows, arm, question)
        for row in once(rows) if near else ():
            asked = row["question"] in (AT_BEST, question) and arm_of(row) == arm and row["seed"] == seed
            if asked and (which := number_at(row, "measured.rare.which")) is not None:
                best = BASE | dict(near[0])
                mine = BASE | {name: tuple(v) if isinstance(v, list) else v for name, v in row["set"].items()}
                changed = [f"{NAMES[name]} {value_text(v)}" for name, v in mine.items() if best[name] != v]
                other = row["measured"]["rare"]["which_other"]
                found.append(Point(arm, ", ".join(changed) or OWN, row["val_loss"], which, other))
    return sorted(found, key=lambda point: (point.changed != OWN, point.which))


def told(rows: list[dict]) -> str:
    """Markdown: the rule's verdict in words, and the settings in a table."""
    tried = points(rows)
    if not {TUNED, "standard"} <= {point.arm for point in tried if point.changed == OWN}:
        return ""
    ours = next(point for point in tried if point.arm == TUNED)
    theirs = [point for point in tried if point.arm == "standard"]
    least = min(point.loss for point in theirs)
    near = [point for point in theirs if point.loss <= least + NEAR]
    nearest = min(near, key=lambda point: point.which)
    verdict = "as well as" if nearest.which <= ours.which else "not as well as"
    sentence = (
        f"**Of {len(theirs)} settings of the standard head {len(near)} lose at most {NEAR} nats per token above its "
        f"least. The best of these at rare tokens ({nearest.changed}) tells them apart {verdict} "
        f"{ARMS[TUNED]} at its own: {nearest.which:.3f} against {ours.which:.3f} nats** (one seed)."
    )
    lines = [
        [ARMS[point.arm], point.changed, *(f"{x:.3f}" for x in (point.loss, point.which, point.which_other))]
        for point in tried
    ]
    columns = "arm | differs from the chosen setting in | nats per token | which rare token | which other token"
    table = markdown_table(columns, lines)
    return f'{sentence}\n\n<details markdown="1"><summary>All settings</summary>\n\n{table}\n\n</details>'


def draw(path: Path, rows: list[dict]) -> None:
    """Nats for which rare token it is, against the whole loss, a point for each setting; large: the chosen ones."""
    figure, ((axes,),) = subplots(1, 1, 6, 4)
    for arm, head in ((TUNED, "harmonic"), ("standard", "standard")):
        mine = [point for point in points(rows) if point.arm == arm]
        for own in (False, True):
            points_of = [point for point in mine if (point.changed == OWN) == own]
            x, y = [point.loss for point in points_of], [point.which for point in points_of]
            name = f"{ARMS[arm]}, {'as chosen' if own else 'neighbors'}"
            axes.plot(x, y, "*" if own else "o", color=HEAD_COLORS[head], ms=16 if own else 6, ls="", label=name)
    axes.set(xlabel="validation loss, nats per token", ylabel="nats per rare target,\nfor which rare token it is")
    axes.grid(color="0.92")
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=9)
    figure.savefig(path, dpi=150)
