"""Claims of the paper beside what was measured: one table, what does not hold first."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harmonic_gpt.extras import require
from harmonic_gpt.files import write_text

SIGNIFICANCE = 0.05
VERDICTS = ("does not hold", "partly", "holds", "not measured")


@dataclass
class Claim:
    """A claim, the numbers, and a verdict of VERDICTS. `other` is the verdict under the code's leaking protocol, where
    there is one."""

    text: str
    measured: str
    verdict: str
    other: str = ""


@dataclass
class Comparison:
    """Two samples over seeds: medians, two-sided Mann-Whitney p. `verdict`: "holds" if ours is better with p < 0.05,
    "partly" if it is better with a larger p, else "does not hold"."""

    ours: float
    base: float
    p: float
    verdict: str


def compare(ours: np.ndarray, base: np.ndarray, higher_is_better: bool) -> Comparison:
    """NaN (never reached) counts as worst."""
    require("studies", "scipy")
    from scipy.stats import mannwhitneyu

    worst = -np.inf if higher_is_better else np.inf
    a, b = (np.where(np.isnan(x), worst, x).astype(float) for x in (ours, base))
    p = float(mannwhitneyu(a, b, alternative="two-sided").pvalue)
    median_a, median_b = float(np.median(a)), float(np.median(b))
    better = median_a > median_b if higher_is_better else median_a < median_b
    verdict = "does not hold" if not better else "holds" if p < SIGNIFICANCE else "partly"
    return Comparison(median_a, median_b, p, verdict)


def verdict_of(ours: np.ndarray, base: np.ndarray, higher_is_better: bool) -> str:
    return compare(ours, base, higher_is_better).verdict


def combined(verdicts: list[str]) -> str:
    """Of a claim with several parts: "holds" if all do, "does not hold" if none even partly does."""
    if not verdicts:
        return "not measured"
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "partly"


def write_claims(folder: Path, title: str, claims: list[Claim], note: str) -> None:
    """claims.md in `folder`: a table, worst verdict first."""
    two = any(claim.other for claim in claims)
    header = ["claim of the paper", "measured", "verdict"] + (["with the code's leaking protocol"] if two else [])
    lines = [f"# {title}: claims", "", note, "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for claim in sorted(claims, key=lambda c: VERDICTS.index(c.verdict)):
        cells = [claim.text, claim.measured, f"**{claim.verdict}**"]
        if two:
            cells.append(claim.other if claim.other != claim.verdict else "the same")
        lines.append(f"| {' | '.join(cells)} |")
    write_text(folder / "claims.md", "\n".join(lines) + "\n")
