"""Numbers that pages state, each from a results file of docs/results: what summary.py tells and draws."""

import json
import re
from functools import cache
from pathlib import Path

from report import own_settings

from harmonic_gpt.files import read_jsonl

ROOT = Path(__file__).parents[1]
FILES = ROOT / "docs/results"

SCARCE = "data efficiency"  # a question of recipe.jsonl


@cache
def rows_of(name: str) -> tuple[dict, ...]:
    return tuple(read_jsonl(FILES / name))


def short_settings(row: dict) -> dict:
    """Settings and trials of a row beyond its size and head, by the last part of their names."""
    chosen, trial = own_settings(row)
    return {name.rsplit(".", 1)[-1]: value for name, value in (chosen | trial).items()}


def compared() -> dict[str, dict]:
    """Arm -> the comparison of `eval.py compare` of its kept runs at 6 x 384 with the standard head's, as results.json
    has it."""
    files = {"harmonic": FILES / "reading_protocol.json", "quarter": FILES / "reading_protocol_sharp.json"}
    return {arm: json.loads(file.read_text(encoding="utf-8"))["comparison"] for arm, file in files.items()}


def changes() -> list[tuple[str, float, float]]:
    """One change at a time at 2 x 128 on seed 0: (its name, what it does to the loss of harmonic, and of standard)."""

    def loss(head: str, settings: dict) -> float:
        found = {
            row["val_loss"]
            for row in rows_of("recipe.jsonl")
            if (row["size"], row["head"], row["seed"]) == ("2x128", head, 0) and short_settings(row) == settings
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
    made = [
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
    return [
        (name, *(loss(head, after) - loss(head, before) for head, (before, after) in
                 (("harmonic", ours), ("standard", theirs))))
        for name, ours, theirs in made
    ]  # fmt: skip


def head_ratio(name: str) -> float:
    """Time of the head that starts with `name` over the fastest linear one, 2,048 x 768 x 50,257 on a CPU."""
    seconds = {row["head"].split()[0]: row["seconds"] for row in rows_of("head_cpu.jsonl")}
    return seconds[name] / min(seconds[one] for one in "bc")


def step_speed(size: str, model: str = "harmonic", baseline: str = "standard") -> float:
    speeds = {row["model"]: row["tokens_per_second"] for row in rows_of("train_step_cpu.jsonl") if row["size"] == size}
    return speeds[model] / speeds[baseline]


def growth() -> tuple[float, float]:
    """Harmonic here over the chunked linear head: lowest and highest ratio of times over N and V."""
    points: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows_of("head_growth.jsonl"):
        points.setdefault((row["tokens"], row["classes"]), {})[row["head"].split()[0]] = row["seconds"]
    ratios = [at["e"] / at["c"] for at in points.values()]
    return min(ratios), max(ratios)


def claims() -> str:
    """Verdicts on the paper's claims about the algorithmic tasks, from the page that the study writes."""
    page = (FILES / "studies_claims_algorithmic.md").read_text(encoding="utf-8").partition("<details")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    found = [match[1] for line in lines if (match := re.search(r"\*\*(holds|partly|does not hold)\*\*", line))]
    count = found.count
    partly = f"{count('partly')} in part or not shown"
    return f"Of {len(found)} claims {count('holds')} hold, {partly}, {count('does not hold')} do not"
