"""What was asked and what came out, in words: the answers of README and of docs/results/, their numbers from the rows.

summary.py puts them into the pages.
"""

from statistics import mean
from typing import Literal, NamedTuple

import heads_report
import results
from measured import by_size, claims, compared, head_ratio, rows_of, scarce, step_speed
from report import SeedPairs, difference, interval

CHOSEN = results.ARMS[results.CHOSEN]


def ahead(pairs: SeedPairs) -> str:
    """Which head has the lower loss, if the interval leaves out zero."""
    limits = interval(pairs)
    if limits is None or limits[0] <= 0 <= limits[1]:
        return "no difference shown" if limits else "one seed: a lead, no result"
    return "harmonic" if limits[1] < 0 else "standard"


def _other_heads() -> str:
    """Which heads are ahead of standard over fresh seeds, by their intervals."""
    pairs = {arm: found for arm, found in heads_report.compared(list(rows_of("heads.jsonl"))).items() if len(found) > 1}
    better = [heads_report.name_of(arm) for arm, found in pairs.items() if ahead(found) == "harmonic"]
    few = f"a screening of {len(_screened())} heads on one seed"
    if not pairs:
        return f"Not shown: {few} is all there is"
    return f"{', '.join(better) or 'None'} of {len(pairs)} compared with standard over fresh seeds, after {few}"


def _screened() -> list[tuple[float, str, str]]:
    return heads_report.screened(heads_report.searches(list(rows_of("heads.jsonl"))))


def protocol_rows() -> list[dict]:
    return list(rows_of("protocol.jsonl"))


class Answer(NamedTuple):
    question: str
    paper: str
    answer: str
    number: str
    label: str
    page: str  # of docs/results, with its anchor


def told(name: str, arm: str = results.CHOSEN, numbers: Literal["all", "largest"] = "all") -> str:
    return results.told(protocol_rows(), name, arm, numbers)


def short(name: str, arm: str = results.CHOSEN) -> str:
    return told(name, arm, "largest")


def at_largest(name: str) -> str:
    """A hypothesis on the shipped arm in words, at the largest size alone."""
    rows = protocol_rows()
    size = max(measured_at(name), key=results.depth_and_width)
    return results.told([row for row in rows if row["size"] == size], name, results.CHOSEN)


def _reading_answer() -> str:
    """Yes, no or in part, by the protocol's verdicts on reading."""
    found = {one.verdict for one in results.outcomes(protocol_rows()) if one.hypothesis.name[0] == "R"}
    return "Yes" if found == {"holds"} else "In part" if "holds" in found else "Not shown"


def _of_scarce_text() -> str:
    """What P2 and P3 came to, where they have runs."""
    said = [f"r = 1: {told('P2', 'harmonic')}"]
    if measured_at("P2"):
        said.insert(0, f"{CHOSEN}: {told('P2')}")
    if measured_at("P3"):
        said[-1] += f". With a sixty-fourth, {CHOSEN}: {told('P3')}"
    return "; ".join(said)


def measured_at(name: str, arm: str = results.CHOSEN) -> list[str]:
    """The sizes at which a hypothesis has a pair of seeds."""
    return [one.size for one in results.outcomes(protocol_rows()) if (one.hypothesis.name, one.arm) == (name, arm)]


def answers() -> list[Answer]:
    best = [f"{heads_report.name_of(arm)} {loss:.3f}" for loss, arm, _ in _screened()[:2]]
    paper = compared()["differences"][0]["paper_tasks"]
    return [
        Answer(
            "Does it predict as well?",
            "GPT-2 small: 3.146 against 3.159 nats per token, harmonic ahead",
            f"With {CHOSEN}: {short('P1')}. With r = 1: {short('P1', 'harmonic')}",
            "Harmonic − standard in nats per token, both with weight decay, five fresh seeds",
            "prediction", "prediction.md",
        ),
        Answer(
            "And with little text?",
            "Less data needed, on small tasks",
            f"With a sixteenth of the text and weight decay, {_of_scarce_text()}",
            f"without weight decay r = 1 leads after 400 steps: {difference(next(iter(scarce().values())))}",
            "prediction", "prediction.md#scarce-text",
        ),
        Answer(
            "Is it easier to read?",
            "Yes, by its parallelogram loss",
            f"{_reading_answer()}. With {CHOSEN}, agreement of inner layers with the output: {short('R1')}; "
            f"distance to the right token's center, after a fitted shift and scale of the centers: {short('R3')}",
            f"not by a fitted lens beyond 2 x 64, nor (6 x 384) by probes, analogies or own centers; the paper's "
            f"parallelogram loss is lower in {len(paper['lower'])} of {paper['compared']} tasks",
            "reading", "reading.md",
        ),
        Answer(
            "Is it good for something else?",
            "",
            f"In part. With {CHOSEN}, loss on rare tokens (1 to 99 times in the training text): {short('U5')}; early "
            f"exit at equal agreement: {short('U6')}",
            f"tokens added from 16 contexts: {at_largest('U4')}; head in int4: {at_largest('U2')}; calibration: "
            f"{at_largest('U1')}",
            "uses", "uses.md",
        ),
        Answer(
            "Do the paper's small studies reproduce?", "Yes", "In part, without the code's leak of test examples",
            claims(), "studies", "studies.md",
        ),
        Answer(
            "Does another head predict better?", "", _other_heads(),
            f"best in the screening: {', '.join(best)} nats per token",
            "heads", "heads.md",
        ),
        Answer(
            "What does it cost?", "",
            "A few percent on a CPU; not measured on a GPU",
            f"head {head_ratio('e'):.2f} x the fastest linear head; training at {step_speed('quickstart'):.2f} "
            f"(quickstart) and {step_speed('gpt2-small'):.2f} (GPT-2 small) of the standard speed",
            "speed", "speed.md",
        ),
    ]  # fmt: skip


def prediction_conclusions() -> str:
    sizes, little = by_size(), scarce()
    gaps, whole = ([mean(a - b for _, a, b in arms[r]) for arms in sizes.values()] for r in ("1/4", "1"))
    lines = [
        f"- **With no token seen twice, both heads with weight decay, {CHOSEN}**: {told('P1')}.",
        f"- **The same, r = 1**: {told('P1', 'harmonic')}; **r = 1/8**: {told('P1', 'eighth')}.",
        "  Five fresh seeds, or as many as said.",
        "- **Without weight decay the standard head has the lower mean at all four sizes**: against r = 1/4 by "
        f"{min(gaps):.3f} to {max(gaps):.3f},",
        f"  {_shown([arms['1/4'] for arms in sizes.values()])}; against r = 1 by {min(whole):.3f} to {max(whole):.3f}, "
        f"{_shown([arms['1'] for arms in sizes.values()])} (three seeds).",
        f"- **With a sixteenth of the text and weight decay**: {_of_scarce_text()};",
        f"  without weight decay r = 1 leads after 400 steps: {difference(next(iter(little.values())))}.",
    ]
    return "\n".join(lines)


def _shown(sizes: list[SeedPairs]) -> str:
    """At how many of the sizes the interval leaves out zero."""
    count = sum(ahead(pairs) in ("harmonic", "standard") for pairs in sizes)
    return f"where the interval leaves out zero at {'all' if count == len(sizes) else count} of them"
