"""What was asked and what came out, in words: the answers of README and of docs/results/, their numbers from the rows.

summary.py puts them into the pages.
"""

from collections.abc import Callable
from typing import NamedTuple

import heads_report
import results
from measured import claims, compared, growth, rows_of, step_speed
from report import SeedPairs, difference, interval


def ahead(pairs: SeedPairs) -> str:
    """Which head has the lower loss, if the interval leaves out zero."""
    limits = interval(pairs)
    if limits is None or limits[0] <= 0 <= limits[1]:
        return "no difference shown" if limits else "one seed: a hint, no result"
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


def compared_rows() -> list[dict]:
    """As verdicts compare them: results.against_best."""
    return results.against_best(protocol_rows())


class Answer(NamedTuple):
    question: str
    paper: str
    answer: str
    number: str
    label: str
    page: str  # of docs/results, with its anchor


def told(name: str, arm: str) -> str:
    return results.told(compared_rows(), name, arm)


LINE = "<br>"  # in a cell of a Markdown table


def of_arms(say: Callable[[str], str], name: str, between: str = LINE) -> str:
    """What is said of each arm that has a pair of seeds for a hypothesis of this name or initial."""
    found = {one.arm for one in results.outcomes(compared_rows()) if one.hypothesis.name.startswith(name)}
    return between.join(f"**{results.ARMS[arm]}**: {say(arm)}" for arm in results.TOLD if arm in found)


def by_verdict(names: dict[str, str], arm: str, numbers: bool) -> str:
    """Hypotheses (name -> what to call it) by their verdict at the largest size; with numbers: each with its number
    there and, where they differ, the verdicts of smaller models, the smallest first."""
    rows, said, size = compared_rows(), {}, ""
    for name, label in names.items():
        found = [one for one in results.outcomes(rows) if (one.hypothesis.name, one.arm) == (name, arm)]
        found = [one for one in found if len(one.pairs) >= results.SEEDS] or found
        if found:
            *smaller, last = [results.WORDS.get(one.verdict, one.verdict) for one in found]
            other = f"; smaller: {', '.join(dict.fromkeys(smaller))}" if set(smaller) - {last} else ""
            said.setdefault(last, []).append(f"{label} ({difference(found[-1].pairs)}{other})" if numbers else label)
            size = results.spaced(found[-1].size)
    order = [word for word in ("ahead", "behind", "level", results.NOT_SHOWN, "undecided") if word in said]
    parts = "; ".join(f"{word} in {', '.join(said[word])}" for word in order)
    return f"at {size} {parts}" if said else "not measured yet"


READING = {"R1": "lens agreement", "R3": "label distance", "R2": "tuned lens", "R4": "own center"}
USES = {
    "U5": "rare tokens",
    "U9": "which rare token comes",
    "U6": "early exit at equal agreement",
    "U3": "early exit at equal confidence",
    "U4": "tokens added from 16 contexts",
    "U1": "calibration",
    "U2": "head in int4",
}


def _in_part(initial: str) -> str:
    """Yes, no or in part, by the protocol's verdicts."""
    outcomes = results.outcomes(compared_rows())
    found = {one.verdict for one in outcomes if one.hypothesis.name[0] == initial and one.arm in results.TOLD}
    return "Yes" if found == {"holds"} else "In part" if "holds" in found else "Not shown"


def _little() -> str:
    """No, as long as the standard head is ahead at every size and share."""
    found = [one for one in results.outcomes(compared_rows()) if one.hypothesis.name in ("P2", "P3")]
    return "No" if all(one.verdict == "does not hold" for one in found) else "In part"


def _parallelograms() -> str:
    """In how many tasks the paper's measure is lower, and in how many for words paired at random, of each arm."""
    said = []
    for arm, found in compared().items():
        tasks = found["differences"][0]["paper_tasks"]
        lower, of, random = len(tasks["lower"]), tasks["compared"], len(tasks["shuffled_lower"])
        said.append(
            f"in {lower} of {of} tasks, and in {random} with their words paired at random ({results.ARMS[arm]})"
        )
    return "; ".join(said)


def answers(numbers: bool = True) -> list[Answer]:
    """numbers: every difference with its interval; else those of the losses alone."""
    best = [f"{heads_report.name_of(arm)} {loss:.3f}" for loss, arm, _ in _screened()[:2]]
    unused = "on text that no choice has seen:"
    return [
        Answer(
            "Does it predict as well?",
            "GPT-2 small: 3.146 against 3.159 nats per token, harmonic ahead",
            of_arms(lambda arm: told("P1", arm) + (f"; {unused} {told('P4', arm)}" if numbers else ""), "P1"),
            "Nats per token, no token seen twice",
            "prediction", "prediction.md",
        ),
        Answer(
            "And with little text?",
            "Less data needed, on small tasks",
            f"{_little()}.{LINE}A sixteenth of it: {of_arms(lambda arm: told('P2', arm), 'P2', '; ')}"
            f"{LINE}A sixty-fourth: {of_arms(lambda arm: told('P3', arm), 'P3', '; ')}",
            "Nats per token",
            "prediction", "prediction.md#scarce-text",
        ),
        Answer(
            "Is it easier to read?",
            "Yes, by its parallelogram loss",
            f"{_in_part('R')}.{LINE}{of_arms(lambda arm: by_verdict(READING, arm, numbers), 'R')}",
            "Lens agreement where the answer depends on the context; label distance after a fitted shift and scale. "
            f"The paper's parallelogram loss is lower {_parallelograms()}",
            "reading", "reading.md",
        ),
        Answer(
            "Is it good for something else?",
            "",
            f"{_in_part('U')}.{LINE}{of_arms(lambda arm: by_verdict(USES, arm, numbers), 'U')}",
            f"Rare: 1 to 99 times in the corpus. Which one comes, {results.ARMS[results.TUNED]} against the standard "
            f"setting that is best for them: {told('U10', results.TUNED)}",
            "uses", "uses.md",
        ),
        Answer(
            "Do the paper's small studies reproduce?", "Yes", "In part, without the code's leak of test examples",
            claims(), "studies", "studies.md",
        ),
        Answer(
            "Does another head predict better?", "", _other_heads(),
            f"Best in the screening: {', '.join(best)} nats per token",
            "heads", "heads.md",
        ),
        Answer(
            "What does it cost?", "",
            f"On a CPU {growth()[0]:.2f} to {growth()[2]:.2f} x the time of a chunked linear head",
            f"Training at {step_speed('quickstart'):.2f} (quickstart) and {step_speed('gpt2-small'):.2f} (GPT-2 small) "
            "of the standard speed. GPU: not measured",
            "speed", "speed.md",
        ),
    ]  # fmt: skip
