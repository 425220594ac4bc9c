"""What is known, in one place: the answers of README and of docs/results/, with every number from a results file.

    python experiments/summary.py            # print
    python experiments/summary.py --write    # put each part between its markers in every page that has them

A part stands between `<!-- NAME, made by experiments/summary.py -->` and `<!-- end of NAME -->`. The protocol's own
table is made by results.py; what it decides is added here to the answers.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from report import interval, own_settings, paired, spread
from results import HYPOTHESES, SEEDS, number_at, verdict

from harmonic_gpt.files import read_jsonl, write_text

ROOT = Path(__file__).parents[1]
FILES = ROOT / "docs/results"
Pairs = list[tuple[int, float, float]]

R_ONE, R_QUARTER = "confirmation with Muon", "confirmation of the bridge"  # questions of recipe.jsonl
SCARCE, SHORT = "data efficiency", "0.85 of the tokens"
SIZES = ("2x64", "2x128", "4x192", "6x384")
R_NAMES = {1: "1", 2: "1/2", 4: "1/4", 8: "1/8", 11.3: "1/11.3"}  # 1 / r


@cache
def rows_of(name: str) -> tuple[dict, ...]:
    return tuple(read_jsonl(FILES / name))


def losses(question: str, head: str, size: str, **settings: object) -> dict[int, float]:
    """seed -> final validation loss (nats per token) of recipe.jsonl's runs with exactly one setting that matches.

    `settings`: last parts of setting names, as in `head_lr_scale=2.0`; `dir` None for the whole corpus.
    """
    found: dict[int, float] = {}
    for row in rows_of("recipe.jsonl"):
        if (row["question"], row["head"], row["size"]) != (question, head, size):
            continue
        chosen, trial = own_settings(row)
        short = {name.rsplit(".", 1)[-1]: value for name, value in (chosen | trial).items()}
        if all(short.get(name) == value for name, value in settings.items()):
            if row["seed"] in found:
                raise ValueError(f"two settings of {head} at {size} for {question!r} match {settings}")
            found[row["seed"]] = row["val_loss"]
    return found


def pair(ours: dict[int, float], theirs: dict[int, float]) -> Pairs:
    return [(seed, ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def by_size() -> dict[str, dict[str, Pairs]]:
    """size -> r -> pairs of harmonic and the standard head at its best, seeds that took no part in choosing."""
    standard = {size: losses(R_QUARTER, "standard", size) for size in SIZES}
    return {
        size: {
            r: pair(losses(question, "harmonic", size), standard[size])
            for r, question in (("1/4", R_QUARTER), ("1", R_ONE))
        }
        for size in SIZES
    }


def scarce() -> dict[str, Pairs]:
    """A sixteenth of the corpus, no weight decay: what both heads did -> pairs of harmonic (r = 1) and standard."""
    share = partial(losses, size="2x128", dir="prose8k-16", head_lr_scale=2.0)
    plain = {"dropout": None, "label_smoothing": None, "exponent": 22.6}
    of_standard = plain | {"exponent": None}
    ours, theirs = share(SCARCE, "harmonic", **plain), share(SCARCE, "standard", **of_standard)
    short = share(SHORT, "harmonic"), share(SHORT, "standard")
    return {
        "400 steps (3.5 epochs)": pair(ours, theirs),
        "340 steps": pair(*short),
        "each with its better schedule: harmonic 400, standard 340": pair(ours, short[1]),
        "400 steps, dropout 0.1": pair(
            share(SCARCE, "harmonic", dropout=0.1), share(SCARCE, "standard", dropout=0.1)
        ),
        "400 steps, label smoothing 0.05": pair(
            share(SCARCE, "harmonic", label_smoothing=0.05), share(SCARCE, "standard", label_smoothing=0.05)
        ),
    }  # fmt: skip


def over_r() -> dict[float, dict[float, float]]:
    """1 / r -> n -> loss, 2 x 128, seed 0, Muon, rate of the head x 2: the sweep towards the dot product."""
    found: dict[float, dict[float, float]] = {}
    for row in rows_of("recipe.jsonl"):
        chosen, trial = own_settings(row)
        fixed = {"optim.head_lr_scale": 2.0, "optim.lr": 0.008, "optim.eps": 1e-5, "optim.optimizer": "muon"}
        own = {"model.center_std", "model.hidden_scale", "model.exponent", "model.tie_word_embeddings"}
        swept = chosen.items() >= fixed.items() and chosen.keys() <= fixed.keys() | own and not trial
        if swept and (row["size"], row["head"], row["seed"]) == ("2x128", "harmonic", 0):
            inverse = chosen.get("model.hidden_scale", 1) / chosen.get("model.center_std", 1)
            found.setdefault(min(R_NAMES, key=lambda one: abs(one - inverse)), {})[chosen["model.exponent"]] = row[
                "val_loss"
            ]
    return dict(sorted(found.items()))


def standard_over_r() -> dict[str, float]:
    """The standard head beside that sweep: its best std at twice the rate of the head, and at four times."""
    return {
        f"x {scale:g}": min(
            row["val_loss"]
            for row in rows_of("recipe.jsonl")
            if (row["question"], row["head"], row["seed"]) == ("bridge", "standard", 0)
            and own_settings(row)[0]["optim.head_lr_scale"] == scale
        )
        for scale in (2.0, 4.0)
    }


def shown(pairs: Pairs) -> str:
    """Mean difference with its 95 % interval (paired t over seeds), where there are several seeds."""
    limits = interval(pairs)
    gap = f"{mean(a - b for _, a, b in pairs):+.3f}"
    return gap if limits is None else f"{gap} [{limits[0]:+.3f}, {limits[1]:+.3f}]"


def ahead(pairs: Pairs) -> str:
    """Which head has the lower loss, if the interval leaves out zero."""
    limits = interval(pairs)
    if limits is None or limits[0] <= 0 <= limits[1]:
        return "no difference shown" if limits else "one seed: a lead, no result"
    return "harmonic" if limits[1] < 0 else "standard"


def table(header: str, lines: Iterable[Iterable[str]]) -> str:
    head = f"| {header} |"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *("| " + " | ".join(line) + " |" for line in lines)])


def sizes_table() -> str:
    lines = []
    for size, arms in by_size().items():
        quarter = arms["1/4"]
        ours, theirs = (spread([one[i] for one in quarter]).replace("+-", "±") for i in (1, 2))
        named = size.replace("x", " x ")
        lines.append([named, ours, theirs, shown(quarter), ahead(quarter), shown(arms["1"])])
    return table("size | harmonic, r = 1/4 | standard | harmonic - standard [95 %] | ahead | with r = 1", lines)


def r_table() -> str:
    lines = []
    for inverse, points in over_r().items():
        tried = ", ".join(f"{n:g}: {loss:.3f}" for n, loss in sorted(points.items()))
        lines.append([f"harmonic, r = {R_NAMES[inverse]}", f"{min(points.values()):.3f}", tried])
    for name, loss in standard_over_r().items():
        lines.append([f"standard, rate of the head {name}", f"{loss:.3f}", ""])
    return table("2 x 128, seed 0 | best, nats per token | n: nats per token", lines)


def scarce_table() -> str:
    lines = []
    for name, pairs in scarce().items():
        ours, theirs = (f"{mean(one[i] for one in pairs):.3f}" for i in (1, 2))
        lines.append([name, ours, theirs, str(len(pairs)), shown(pairs), ahead(pairs)])
    columns = "harmonic, r = 1 | standard | seeds | difference [95 %] | ahead"
    return table(f"a sixteenth of the text, no weight decay | {columns}", lines)


def changes_table() -> str:
    """One change at a time at 2 x 128 on seed 0: what it does to each head."""

    def loss(head: str, settings: dict) -> float:
        found = {
            row["val_loss"]
            for row in rows_of("recipe.jsonl")
            if (row["size"], row["head"], row["seed"]) == ("2x128", head, 0) and _plain(row) == settings
        }
        if len(found) != 1:
            raise ValueError(f"{len(found)} rows of {head} with {settings}")
        return found.pop()

    n, std = {"exponent": 22.6}, {"center_std": 0.088}
    adam = {"tie_word_embeddings": False, "lr": 0.008}
    eps, muon, beta2 = {"eps": 1e-5}, {"optimizer": "muon"}, {"betas": [0.9, 0.99]}
    twice, four = {"head_lr_scale": 2.0}, {"head_lr_scale": 4.0}
    tied = {"lr": 0.008, "random_signs": True}
    quarter = {"exponent": 68, "center_std": 0.0884, "hidden_scale": 0.3536} | adam | eps | muon | twice
    best = std | adam | eps | muon | four
    changes = [
        ("Muon for the blocks' matrices (rate of the head: harmonic x 1 to x 2, standard x 2)",
         (n | adam | eps, n | adam | eps | muon | twice),
         (std | adam | eps | twice, std | adam | eps | muon | twice)),
        ("untied, without random signs", (n | tied, n | adam), (std | tied, std | adam)),
        ("AdamW's eps 1e-5, not 1e-8", (n | adam, n | adam | eps), (std | adam, std | adam | eps)),
        ("beta2 0.99, not 0.95 (r = 1/4)", (quarter, quarter | beta2), (best, best | beta2)),
        ("100 steps of warmup, not 40 (r = 1/4)", (quarter, quarter | {"warmup_steps": 100}),
         (best, best | {"warmup_steps": 100})),
        ("label smoothing 0.05 (r = 1/4)", (quarter, quarter | {"label_smoothing": 0.05}),
         (best, best | {"label_smoothing": 0.05})),
        ("three times the learning rate (r = 1/4)", (quarter, quarter | {"lr": 0.024}), (best, best | {"lr": 0.024})),
    ]  # fmt: skip
    lines = [
        [name, *(f"{loss(head, after) - loss(head, before):+.3f}" for head, (before, after) in
                 (("harmonic", ours), ("standard", theirs)))]
        for name, ours, theirs in changes
    ]  # fmt: skip
    return table("one change, nats per token (less is better) | harmonic | standard", lines)


def _plain(row: dict) -> dict:
    chosen, trial = own_settings(row)
    return {name.rsplit(".", 1)[-1]: value for name, value in (chosen | trial).items()}


def head_ratio(name: str) -> float:
    """Time of the head that starts with `name` over the fastest linear one, 2,048 x 768 x 50,257 on a CPU."""
    seconds = {row["head"].split()[0]: row["seconds"] for row in rows_of("head_cpu.jsonl")}
    return seconds[name] / min(seconds[one] for one in "abc")


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
    return table(f"{shape} | seconds [quartiles] | / fastest linear | transient MiB", lines)


def step_speed(size: str, model: str = "harmonic", baseline: str = "standard") -> float:
    speeds = {row["model"]: row["tokens_per_second"] for row in rows_of("train_step_cpu.jsonl") if row["size"] == size}
    return speeds[model] / speeds[baseline]


def step_table() -> str:
    lines = []
    for row in rows_of("train_step_cpu.jsonl"):
        speed = "{:,.0f} [{:,.0f}, {:,.0f}]".format(row["tokens_per_second"], *row["quartiles"])
        ratios = [f"{step_speed(row['size'], row['model'], other):.2f}" for other in ("standard", "nanoGPT")]
        lines.append([row["size"], row["model"], speed, *ratios])
    return table("size | model | tokens per second [quartiles] | / standard here | / nanoGPT", lines)


def growth() -> tuple[float, float, float]:
    """Harmonic here over the chunked linear head: lowest, median and highest ratio of times over N and V."""
    points: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows_of("head_growth.jsonl"):
        points.setdefault((row["tokens"], row["classes"]), {})[row["head"].split()[0]] = row["seconds"]
    ratios = sorted(at["e"] / at["c"] for at in points.values())
    return ratios[0], median(ratios), ratios[-1]


def claims() -> str:
    """Verdicts on the paper's claims about the algorithmic tasks, from the page that the study writes."""
    page = (FILES / "studies_claims_algorithmic.md").read_text(encoding="utf-8").partition("<details")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    found = [match[1] for line in lines if (match := re.search(r"\*\*(holds|partly|does not hold)\*\*", line))]
    count = found.count
    return f"of {len(found)} claims {count('holds')} hold, {count('partly')} in part, {count('does not hold')} do not"


def screening() -> list[tuple[float, str]]:
    """(best loss, arm) of every head that heads.yaml screens, best first."""
    best: dict[str, float] = {}
    for row in rows_of("heads.jsonl"):
        if row["question"] == "screening":
            best[row["arm"]] = min(best.get(row["arm"], float("inf")), row["val_loss"])
    return sorted((loss, arm) for arm, loss in best.items())


HEADS = {"quarter": "harmonic, r = 1/4"}  # arms whose names do not say what they are


def _other_heads() -> str:
    """Which heads are ahead of standard over fresh seeds, by their intervals."""
    compared = [row for row in rows_of("heads.jsonl") if row["question"] == "comparison"]
    pairs = {arm: found for (_, _, arm), found in paired(compared).items() if len(found) > 1}
    better = [HEADS.get(arm, arm) for arm, found in pairs.items() if interval(found)[1] < 0]  # type: ignore[index]
    few = f"a screening of {len(screening())} heads on one seed"
    if not pairs:
        return f"Not shown: {few} is all there is"
    return f"{', '.join(better) or 'None'} of {len(pairs)} compared with standard over fresh seeds, after {few}"


def protocol(*names: str) -> str:
    """The protocol's verdicts on hypotheses, of every arm and size that has five pairs."""
    found = list({row["key"]: row for row in rows_of("protocol.jsonl")}.values())
    said = []
    for hypothesis in HYPOTHESES:
        if hypothesis.name not in names:
            continue
        for (question, size, arm), pairs in paired(found, partial(number_at, path=hypothesis.measure)).items():
            if question == hypothesis.question and len(pairs) >= SEEDS:
                said.append(f"{hypothesis.name} {arm} {size}: {verdict(hypothesis, pairs)}, {shown(pairs)}")
    return "; ".join(said)


class Answer(NamedTuple):
    question: str
    paper: str
    answer: str
    number: str
    label: str
    page: str  # of docs/results, with its anchor


def _with_protocol(text: str, *names: str) -> str:
    said = protocol(*names)
    return f"{text} Protocol, five fresh seeds: {said}" if said else text


def answers() -> list[Answer]:
    sizes, little = by_size(), scarce()
    gaps = [mean(a - b for _, a, b in arms["1/4"]) for arms in sizes.values()]
    clear = sum(ahead(arms["1/4"]) == "standard" for arms in sizes.values())
    text = next(iter(little.values()))
    short = little["340 steps"]
    return [
        Answer(
            "Does it predict as well?",
            "GPT-2 small: 3.146 against 3.159 nats per token, harmonic ahead",
            f"{'In part' if ': holds' in protocol('P1') else 'No'}. Standard is ahead in the mean at "
            f"{sum(gap > 0 for gap in gaps)} of {len(gaps)} sizes, "
            f"its interval leaves out zero at {clear}; at most 17 M parameters, three seeds a size",
            _with_protocol(
                f"harmonic − standard: {min(gaps):+.3f} to {max(gaps):+.3f} nats per token; at 4 x 192 "
                f"{shown(sizes['4x192']['1/4'])}", "P1",
            ),
            "prediction", "prediction.md",
        ),
        Answer(
            "And with little text?",
            "Less data needed, on small tasks",
            "Only against a standard head that is not regularized; a shorter schedule alone leaves no difference "
            "shown, and with weight decay standard was ahead (one seed, rows not kept)",
            _with_protocol(f"no weight decay: {shown(text)}; shorter schedule: {shown(short)}", "P2", "P3"),
            "prediction", "prediction.md#scarce-text-a-lead-over-a-standard-head-without-regularization",
        ),
        Answer(
            "Is it easier to read?",
            "Yes, by its parallelogram loss",
            "Mixed. That loss favors it for random word pairs too. At three seeds it is ahead in none of five "
            "measures and behind in two; on one pair ahead in lens agreement and label distance",
            _with_protocol("intervals on the page.", "R1", "R3"),
            "reading", "reading.md",
        ),
        Answer(
            "Do the paper's small studies reproduce?", "Yes", "In part, without the code's leak of test examples",
            claims(), "studies", "studies.md",
        ),
        Answer(
            "Does another head predict better?", "", _other_heads(),
            "best in the screening: " + ", ".join(f"{HEADS.get(arm, arm)} {loss:.3f}" for loss, arm in screening()[:2])
            + " nats per token",
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
    return table(
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
    return table(
        "question | answer | number | page",
        [[one.question, one.answer, one.number, f"[{one.label}]({one.page})"] for one in answers()],
    )


def prediction_conclusions() -> str:
    sizes, little, sweep, beside = by_size(), scarce(), over_r(), standard_over_r()
    gaps = {size: mean(a - b for _, a, b in arms["1/4"]) for size, arms in sizes.items()}
    whole = [mean(a - b for _, a, b in arms["1"]) for arms in sizes.values()]
    lower = sum(b < a for arms in sizes.values() for _, a, b in arms["1/4"])
    count = sum(len(arms["1/4"]) for arms in sizes.values())
    best = {inverse: min(points.values()) for inverse, points in sweep.items()}
    plain, short = little["400 steps (3.5 epochs)"], little["340 steps"]
    return "\n".join(
        [
            f"- **With enough text the standard head predicts better**, by {min(gaps.values()):.3f} to "
            f"{max(gaps.values()):.3f} nats per token at four sizes,",
            f"  each head at its best; it has the lower loss in {lower} of {count} pairs of runs. At 4 x 192: "
            f"{shown(sizes['4x192']['1/4'])}.",
            f"- **With the paper's geometry (r = 1) it is {min(whole):.3f} to {max(whole):.3f} ahead.** At 4 x 192: "
            f"{shown(sizes['4x192']['1'])}.",
            f"- **The loss falls from r = 1 towards the dot product**: {best[1]:.3f} (r = 1), {best[4]:.3f} (1/4), "
            f"{best[8]:.3f} (1/8), standard {min(beside.values()):.3f}",
            "  (2 x 128, one seed).",
            "- **With a sixteenth of the text harmonic (r = 1) leads a standard head without weight decay**,",
            f"  {shown(plain)}, four seeds; after a shorter schedule {shown(short)}, {ahead(short)}.",
        ]
    )


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
            f"- **Its memory hardly grows with tokens and classes**: {transient['e']:,.0f} MiB beside "
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
    "r": r_table,
    "scarce text": scarce_table,
    "changes": changes_table,
    "speed": speed_conclusions,
    "head": head_table,
    "step": step_table,
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
