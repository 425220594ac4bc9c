"""What was asked and what came out, in words: the answers of README and of docs/results/, their numbers from the rows.

summary.py puts them into the pages.
"""

from collections.abc import Callable
from typing import NamedTuple

import heads_report
import verdicts
from measured import claims, compared, growth, rows_of, step_speed
from report import SeedPairs, interval


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
    """As verdicts compare them: verdicts.against_best."""
    return verdicts.against_best(protocol_rows())


class Answer(NamedTuple):
    question: str
    paper: str
    answer: str
    label: str
    page: str  # of docs/results, with its anchor


LINE = "<br>"  # in a cell of a Markdown table
READING = ("R1", "R3", "R2", "R4")
USES = ("U6", "U3", "U5", "U9", "U4")


def told(name: str) -> str:
    """What is said of a hypothesis, of each arm that has a pair of seeds for it."""
    rows = compared_rows()
    return _of_arms(lambda arm: verdicts.told(rows, name, arm), (name,))


def counted(names: tuple[str, ...]) -> str:
    rows = compared_rows()
    return _of_arms(lambda arm: verdicts.counted(rows, names, arm), names)


def _of_arms(say: Callable[[str], str], names: tuple[str, ...]) -> str:
    found = {one.arm for one in _outcomes(names)}
    return LINE.join(f"**{verdicts.ARMS[arm]}**: {say(arm)}" for arm in verdicts.TOLD if arm in found)


def _outcomes(names: tuple[str, ...]) -> list[verdicts.Outcome]:
    return [one for one in verdicts.outcomes(compared_rows()) if one.hypothesis.name in names]


def _word(names: tuple[str, ...]) -> str:
    """Yes, no or in part."""
    found = {one.verdict for one in _outcomes(names)}
    if not found:
        return "Not measured"
    if found <= {verdicts.AHEAD}:
        return "Yes"
    return "In part" if verdicts.AHEAD in found else "No" if verdicts.BEHIND in found else "Not shown"


def _parallelograms() -> str:
    """In how many tasks the paper's measure is lower, and in how many for words paired at random, of each arm."""
    said = []
    for arm, found in compared().items():
        tasks = found["differences"][0]["paper_tasks"]
        lower, of, random = len(tasks["lower"]), tasks["compared"], len(tasks["shuffled_lower"])
        said.append(f"{lower} of {of} tasks ({verdicts.ARMS[arm]}; with words paired at random in {random})")
    return " and ".join(said)


def answers() -> list[Answer]:
    best = [f"{heads_report.name_of(arm)} {loss:.3f}" for loss, arm, _ in _screened()[:2]]
    return [
        Answer(
            "Does it predict as well?",
            "GPT-2 small: 3.146 against 3.159 nats per token, harmonic ahead",
            f"{_word(('P1',))}. Nats per token, no token seen twice:{LINE}{told('P1')}",
            "prediction", "prediction.md",
        ),
        Answer(
            "And with little text?",
            "Less data needed, on small tasks",
            f"{_word(('P2', 'P3'))}.{LINE}With a sixteenth of it:{LINE}{told('P2')}{LINE}"
            f"With a sixty-fourth:{LINE}{told('P3')}",
            "prediction", "prediction.md#scarce-text",
        ),
        Answer(
            "Is it easier to read?",
            "Yes, by its parallelogram loss",
            f"{_word(READING)}.{LINE}{counted(READING)}{LINE}"
            f"The paper's parallelogram loss is lower in {_parallelograms()}",
            "reading", "reading.md",
        ),
        Answer(
            "Is it good for something else?",
            "",
            f"{_word(USES)}.{LINE}{counted(USES)}",
            "uses", "uses.md",
        ),
        Answer(
            "Do the paper's small studies reproduce?", "Yes",
            f"In part, without the code's leak of test examples. {claims()}", "studies", "studies.md",
        ),
        Answer(
            "Does another head predict better?", "",
            f"{_other_heads()}. Best in the screening: {', '.join(best)} nats per token", "heads", "heads.md",
        ),
        Answer(
            "What does it cost?", "",
            f"On a CPU {growth()[0]:.2f} to {growth()[1]:.2f} x the time of a chunked linear head; training at "
            f"{step_speed('quickstart'):.2f} (quickstart) and {step_speed('gpt2-small'):.2f} (GPT-2 small) of the "
            "standard speed. GPU: not measured",
            "speed", "speed.md",
        ),
    ]  # fmt: skip
