"""What is known, in one place: the answers of README and of docs/results/, with every number from a results file.

    python experiments/summary.py            # print
    python experiments/summary.py --write    # put each part between its markers in every page that has them

A part stands between `<!-- NAME, made by experiments/summary.py -->` and `<!-- end of NAME -->`. Numbers come from
measured.py, the tables of protocol and heads from results.py and heads_report.py.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Literal, NamedTuple

import certificates
import heads_report
import lengths
import results
from measured import (
    FILES,
    ROOT,
    by_size,
    changes,
    claims,
    compared,
    growth,
    head_ratio,
    rows_of,
    scarce,
    step_speed,
)  # fmt: skip
from queue_file import losses_of, read_searches
from report import SeedPairs, difference, interval, markdown_table, spread

from harmonic_gpt.files import write_text

CHOSEN = results.ARMS[results.CHOSEN]


def ahead(pairs: SeedPairs) -> str:
    """Which head has the lower loss, if the interval leaves out zero."""
    limits = interval(pairs)
    if limits is None or limits[0] <= 0 <= limits[1]:
        return "no difference shown" if limits else "one seed: a lead, no result"
    return "harmonic" if limits[1] < 0 else "standard"


def sizes_table() -> str:
    lines = []
    for size, arms in by_size().items():
        quarter = arms["1/4"]
        ours, theirs = (spread([one[i] for one in quarter]).replace("+-", "±") for i in (1, 2))
        named = size.replace("x", " x ")
        lines.append([named, ours, theirs, difference(quarter), ahead(quarter), difference(arms["1"])])
    return markdown_table(
        "size | harmonic, r = 1/4 | standard | harmonic - standard [95 %] | ahead | with r = 1", lines
    )


def scarce_table() -> str:
    lines = []
    for name, pairs in scarce().items():
        ours, theirs = (f"{mean(one[i] for one in pairs):.3f}" for i in (1, 2))
        lines.append([name, ours, theirs, str(len(pairs)), difference(pairs), ahead(pairs)])
    columns = "harmonic, r = 1 | standard | seeds | difference [95 %] | ahead"
    return markdown_table(f"a sixteenth of the text, no weight decay | {columns}", lines)


def changes_table() -> str:
    lines = [[name, f"{ours:+.3f}", f"{theirs:+.3f}"] for name, ours, theirs in changes()]
    return markdown_table("one change, nats per token (less is better) | harmonic | standard", lines)


HEAD_NAMES = {
    "a": "three bare matrix products",
    "b": "linear + `F.cross_entropy`",
    "c": "linear + cross entropy in chunks",
    "d": "harmonic, materialized",
    "d'": "harmonic, as published",
    "e": "**harmonic, here**",
    "e'": "standard, here",
}


def head_table() -> str:
    lines = []
    for row in rows_of("head_cpu.jsonl"):
        name = row["head"].split()[0]
        seconds = "{:.2f} [{:.2f}, {:.2f}]".format(row["seconds"], *row["quartiles"])
        transient = f"{row['transient_bytes'] / 2**20:,.0f}"
        lines.append([HEAD_NAMES[name], seconds, f"{head_ratio(name):.2f}", transient])
    shape = "2,048 tokens x 768 x 50,257 classes, forward + backward"
    return markdown_table(f"{shape} | seconds [quartiles] | / fastest linear | transient MiB", lines)


def step_table() -> str:
    lines = []
    for row in rows_of("train_step_cpu.jsonl"):
        speed = "{:,.0f} [{:,.0f}, {:,.0f}]".format(row["tokens_per_second"], *row["quartiles"])
        ratios = [f"{step_speed(row['size'], row['model'], other):.2f}" for other in ("standard", "nanoGPT")]
        lines.append([row["size"], row["model"], speed, *ratios])
    return markdown_table("size | model | tokens per second [quartiles] | / standard here | / nanoGPT", lines)


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


def certificates_table() -> str:
    return certificates.certificates(read_searches(results.QUEUE, losses_of(protocol_rows())))


def heads_table() -> str:
    rows = list(rows_of("heads.jsonl"))
    return heads_report.table(rows, heads_report.searches(rows))


def reading_means() -> str:
    """The shipped arm's, and the paper's r = 1."""
    arms = (results.CHOSEN, "harmonic")
    return "\n\n".join(results.differences(protocol_rows(), results.READING_MEANS, arm=arm) for arm in arms)


def uses_means() -> str:
    """The shipped arm's, and what three times the rate costs it."""
    thrice = results.with_loss_at_three_times(protocol_rows())
    tables = (
        results.differences(protocol_rows(), results.USES_MEANS),
        results.differences(thrice, results.RATE_MEANS, results.THRICE),
    )
    return "\n\n".join(table for table in tables if table)


def all_measures() -> str:
    """Every measure of `eval.py compare` on the protocol's kept runs, means over seeds."""
    found, lines = compared(), []
    (difference,) = found["differences"]
    arms = difference["first"], difference["second"]
    for key, measure in found["headlines"].items():
        gap = difference["headlines"][key]
        if gap["interval"]:
            means = [f"{measure['arms'][arm]['mean']:.3f}" for arm in arms]
            arrow = "higher" if measure["higher_is_better"] else "lower"
            low, high = gap["interval"]
            shown = f"{gap['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append([f"{measure['label']} ({arrow})", *means, shown, gap["better"] or "no difference shown"])
    seeds = min(len(members) for members in found["arms"].values())
    return markdown_table(f"{seeds} seeds each | {' | '.join(arms)} | difference [95 %] | ahead", lines)


def scaling_table() -> str:
    series = results.by_width(protocol_rows())
    for r in ("1/4", "1"):
        of_r = {int(size.split("x")[1]): arms[r] for size, arms in by_size().items()}
        series[f"r = {r}, no weight decay"] = of_r
    return results.scaling(series)


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
            f"With {CHOSEN}: {short('P1')}. With the paper's r = 1: {short('P1', 'harmonic')}",
            "Harmonic − standard in nats per token, both with weight decay, five fresh seeds",
            "prediction", "prediction.md",
        ),
        Answer(
            "And with little text?",
            "Less data needed, on small tasks",
            f"With a sixteenth of the text and weight decay, {_of_scarce_text()}",
            f"without weight decay r = 1 leads: {difference(next(iter(scarce().values())))}",
            "prediction", "prediction.md#scarce-text",
        ),
        Answer(
            "Is it easier to read?",
            "Yes, by its parallelogram loss",
            f"{_reading_answer()}. With {CHOSEN}, agreement of inner layers with the output: {short('R1')}; "
            f"distance to the right token's center: {short('R3')}",
            f"not by a fitted lens beyond 2 x 64, nor (6 x 384) by probes, analogies or class centers; the paper's "
            f"parallelogram loss is lower in {len(paper['lower'])} of {paper['compared']} tasks",
            "reading", "reading.md",
        ),
        Answer(
            "Is it good for something else?",
            "",
            f"Not beyond the smallest size. With {CHOSEN}, at the largest: calibration {at_largest('U1')}, head in "
            f"int4 {at_largest('U2')}, early exit {at_largest('U3')}",
            f"tokens added from 16 contexts {at_largest('U4')}",
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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def what_we_know() -> str:
    return markdown_table(
        "question | the paper | measured here | page",
        [
            [
                one.question,
                one.paper,
                f"{one.answer}. {_capital(one.number)}",
                f"[{one.label}](docs/results/{one.page})",
            ]
            for one in answers()
            if one.label != "heads"
        ],
    )


def index() -> str:
    return markdown_table(
        "question | answer | number | page",
        [[one.question, one.answer, one.number, f"[{one.label}]({one.page})"] for one in answers()],
    )


def prediction_conclusions() -> str:
    sizes, little = by_size(), scarce()
    gaps, whole = ([mean(a - b for _, a, b in arms[r]) for arms in sizes.values()] for r in ("1/4", "1"))
    lines = [
        f"- **With no token seen twice, both heads with weight decay, {CHOSEN}**: {told('P1')}.",
        f"- **The same, r = 1, the paper's**: {told('P1', 'harmonic')}; **r = 1/8**: {told('P1', 'eighth')}.",
        "  Five fresh seeds, or as many as said.",
        "- **Without weight decay the standard head has the lower mean at all four sizes**: against r = 1/4 by "
        f"{min(gaps):.3f} to {max(gaps):.3f},",
        f"  {_shown([arms['1/4'] for arms in sizes.values()])}; against r = 1 by {min(whole):.3f} to {max(whole):.3f}, "
        f"{_shown([arms['1'] for arms in sizes.values()])} (three seeds).",
        f"- **With a sixteenth of the text and weight decay**: {_of_scarce_text()};",
        f"  without weight decay r = 1 leads: {difference(next(iter(little.values())))}.",
    ]
    return "\n".join(lines)


def _shown(sizes: list[SeedPairs]) -> str:
    """At how many of the sizes the interval leaves out zero."""
    count = sum(ahead(pairs) in ("harmonic", "standard") for pairs in sizes)
    return f"where the interval leaves out zero at {'all' if count == len(sizes) else count} of them"


def speed_conclusions() -> str:
    low, middle, high = growth()
    seconds = {row["head"].split()[0]: row["seconds"] for row in rows_of("head_cpu.jsonl")}
    published = seconds["d'"] / seconds["e"]
    transient = {row["head"].split()[0]: row["transient_bytes"] / 2**20 for row in rows_of("head_cpu.jsonl")}
    most = max(row["transient_bytes"] for row in rows_of("head_growth.jsonl") if row["head"][:2] == "e ") / 2**20
    kernels = rows_of("gpu_compile.jsonl")
    return "\n".join(
        [
            f"- **The harmonic loss takes {head_ratio('e'):.2f} x the time of the fastest linear head** at GPT-2's "
            f"size on a CPU;",
            f"  the form that is published takes {published:.1f} x ours.",
            f"- **Its memory grows slowly with tokens and classes**: {transient['e']:,.0f} MiB beside "
            f"{transient['b']:,.0f} MiB of linear + `F.cross_entropy`;",
            f"  at most {most:,.0f} MiB in the picture below, in which tokens and classes grow by 16.",
            f"- **A training step runs at {step_speed('quickstart'):.2f} (quickstart) and "
            f"{step_speed('gpt2-small'):.2f} (GPT-2 small) of the standard head's speed.**",
            f"- Over N and V, time is {low:.2f} to {high:.2f} x a chunked linear head, {middle:.2f} in the median.",
            f"- **No GPU has run it**: {len(kernels)} variants of the Triton kernel compile, and the interpreter runs "
            "them.",
        ]
    )


PARTS: dict[str, Callable[[], str]] = {
    "what we know": what_we_know,
    "index": index,
    "prediction": prediction_conclusions,
    "sizes": sizes_table,
    "scarce text": scarce_table,
    "changes": changes_table,
    "speed": speed_conclusions,
    "head": head_table,
    "step": step_table,
    "verdicts on prediction": lambda: results.verdicts(protocol_rows(), "P"),
    "verdicts on reading": lambda: results.verdicts(protocol_rows(), "R"),
    "verdicts on uses": lambda: results.verdicts(protocol_rows(), "U", "S"),
    "means of reading": lambda: reading_means(),
    "means of uses": lambda: uses_means(),
    "neighbors": lambda: certificates.neighbors(protocol_rows()),
    "all measures": all_measures,
    "certificates": certificates_table,
    "decay": lambda: lengths.decay(protocol_rows()),
    "decay to a length": lambda: lengths.to_length(protocol_rows()),
    "loss by frequency": lambda: results.differences(protocol_rows(), results.FREQUENCY_MEANS, results.FREQUENCY),
    "growth": lambda: lengths.growth(protocol_rows()),
    "frontier": lambda: results.frontier(protocol_rows()),
    "scaling": scaling_table,
    "heads": heads_table,
    "claims about heads": lambda: heads_report.claims(list(rows_of("heads.jsonl"))),
    "costs of heads": lambda: heads_report.costs(list(rows_of("heads_cpu.jsonl"))),
}
PART = re.compile(
    r"(<!-- (?P<name>[\w ]+), made by experiments/summary.py -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL
)


def with_parts(content: str) -> str:
    """A page's text with each part made anew between its markers."""
    return PART.sub(lambda match: f"{match[1]}\n{PARTS[match['name']]()}\n\n{match[3]}", content)


def pages() -> list[Path]:
    """Pages that have a part."""
    candidates = [ROOT / "README.md", *sorted(FILES.glob("*.md"))]
    return [page for page in candidates if PART.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update the pages instead of printing")
    args = parser.parse_args()
    if not args.write:
        print("\n\n".join(f"## {name}\n\n{part()}" for name, part in PARTS.items()))
        return
    for page in pages():
        write_text(page, with_parts(page.read_text(encoding="utf-8")))
        print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
