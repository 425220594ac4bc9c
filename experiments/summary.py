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

import certificates
import heads_report
import lengths
import results
import trade
import verdicts
from answers import answers, compared_rows, protocol_rows
from measured import (
    FILES,
    ROOT,
    changes,
    compared,
    growth,
    head_ratio,
    rows_of,
    step_speed,
)  # fmt: skip
from queue_file import losses_of, read_searches
from report import arm_of, markdown_table

from harmonic_gpt.files import write_text


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


def certificates_table() -> str:
    return certificates.certificates(read_searches(verdicts.QUEUE, losses_of(protocol_rows())))


def heads_table() -> str:
    rows = list(rows_of("heads.jsonl"))
    return heads_report.table(rows, heads_report.searches(rows))


def reading_means() -> str:
    return _of_arms(results.READING_MEANS)


def uses_means() -> str:
    """With what three times the rate costs."""
    rate = results.differences(compared_rows(), results.RATE_MEANS, verdicts.TUNED, verdicts.THRICE)
    return _joined(_of_arms(results.USES_MEANS), rate)


def frequencies() -> str:
    return _of_arms(results.FREQUENCY_MEANS)


def _of_arms(measures: tuple[tuple[str, str], ...]) -> str:
    """A table for each arm that has every measure."""
    rows = compared_rows()
    return _joined(*(results.differences(rows, measures, arm) for arm in verdicts.TOLD))


def _joined(*tables: str) -> str:
    return "\n\n".join(table for table in tables if table)


def sharp() -> str:
    """r = 1/4 against r = 1."""
    return results.differences(compared_rows(), results.SHARP_MEANS, verdicts.TUNED, baseline="harmonic")


def one_eps() -> str:
    """r = 1/4 against the standard head with the same eps, and what its own does for the standard head."""
    rows, tuned = verdicts.once(protocol_rows()), verdicts.TUNED
    better = [row for row in rows if row["question"] == verdicts.BETTER_EPS["standard"]]
    own = [row | {"question": verdicts.ENOUGH, "arm": tuned} for row in better]
    plain = [row for row in rows if row["question"] == verdicts.ENOUGH and arm_of(row) == "standard"]
    return _joined(
        results.differences(rows, results.EPS_MEANS, tuned, names="r = 1/4, standard, eps 1e-5 for both"),
        results.differences(own + plain, results.EPS_MEANS, tuned, names="standard, eps 1e-8, eps 1e-5"),
    )


def all_measures() -> str:
    """Every measure of `eval.py compare` on the protocol's kept runs, means over seeds: a table for each arm."""
    return _joined(*(_measures_of(arm, found) for arm, found in compared().items()))


def _measures_of(arm: str, found: dict) -> str:
    (pair,), lines = found["differences"], []
    arms = pair["first"], pair["second"]
    for key, measure in found["headlines"].items():
        gap = pair["headlines"][key]
        if gap["interval"]:
            means = [f"{measure['arms'][arm]['mean']:.3f}" for arm in arms]
            arrow = "higher" if measure["higher_is_better"] else "lower"
            low, high = gap["interval"]
            shown = f"{gap['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            names = {pair["first"]: verdicts.ARMS[arm], None: verdicts.NOT_SHOWN}
            ahead = names.get(gap["better"], gap["better"])
            lines.append([f"{measure['label']} ({arrow})", *means, shown, ahead])
    seeds = min(len(members) for members in found["arms"].values())
    return markdown_table(f"{seeds} seeds each | {verdicts.ARMS[arm]} | standard | difference [95 %] | ahead", lines)


def what_we_know() -> str:
    return _answered("docs/results/")


def index() -> str:
    return _answered("")


def _answered(folder: str) -> str:
    lines = [[one.question, one.paper, one.answer, f"[{one.label}]({folder}{one.page})"] for one in answers()]
    return markdown_table("question | the paper | measured here | page", lines)


def speed_conclusions() -> str:
    low, high = growth()
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
            f"- Over all numbers of tokens and classes: {low:.2f} to {high:.2f} x a chunked linear head.",
            f"- **No GPU has run it**: {len(kernels)} variants of the Triton kernel compile, and the interpreter runs "
            "them.",
        ]
    )


PARTS: dict[str, Callable[[], str]] = {
    "what we know": what_we_know,
    "index": index,
    "changes": changes_table,
    "speed": speed_conclusions,
    "head": head_table,
    "step": step_table,
    "verdicts on prediction": lambda: verdicts.table(compared_rows(), "P"),
    "verdicts on reading": lambda: verdicts.table(compared_rows(), "R"),
    "verdicts on uses": lambda: verdicts.table(compared_rows(), "U", "S"),
    "means of reading": reading_means,
    "means of uses": uses_means,
    "neighbors": lambda: certificates.neighbors(protocol_rows()),
    "neighbors at 6x384": lambda: certificates.neighbors(
        protocol_rows(), dict.fromkeys(certificates.CERTIFICATES, certificates.AT_LARGEST)
    ),
    "all measures": all_measures,
    "certificates": certificates_table,
    "decay": lambda: lengths.along(protocol_rows()),
    "decay with 4 epochs": lambda: lengths.along(protocol_rows(), questions=("regularization, 4 epochs",)),
    "decay with 16 epochs": lambda: lengths.along(protocol_rows(), questions=lengths.LITTLE),
    "steps with 16 epochs": lambda: lengths.along(protocol_rows(), "train.steps", lengths.LITTLE),
    "growth with 16 epochs": lambda: lengths.growth(protocol_rows(), (50, 100, 200, 400), lengths.BOUNDED),
    "confidence": lambda: lengths.confidence(protocol_rows()),
    "decay to a length": lambda: lengths.to_length(protocol_rows()),
    "loss by frequency": frequencies,
    "one eps": one_eps,
    "sharp": sharp,
    "trade": lambda: trade.told(protocol_rows()),
    "growth": lambda: lengths.growth(protocol_rows()),
    "frontier": lambda: results.frontier(protocol_rows()),
    "signs": lambda: verdicts.signs(compared_rows()),
    "scaling": lambda: results.scaling(results.by_width(compared_rows())),
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
