"""Claims of the paper beside what was measured: one line each, what does not hold first, details folded below."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harmonic_gpt.evaluation.measures.bootstrap import sign_test
from harmonic_gpt.extras import require
from harmonic_gpt.files import write_text

SIGNIFICANCE = 0.05
VERDICTS = ("does not hold", "partly", "holds", "not measured")
MIN_FOR_A_COUNT = 6  # comparisons: a sign test of fewer cannot have p < SIGNIFICANCE


@dataclass
class Claim:
    """A claim, a verdict of VERDICTS, the one number that decides it, and all the others as Markdown.

    `other` is the verdict under the code's leaking protocol, where there is one.
    """

    text: str
    verdict: str
    number: str
    details: str = ""
    other: str = ""


@dataclass
class Comparison:
    """Two samples over seeds: medians, two-sided Mann-Whitney p, and what `judged` says of them."""

    ours: float
    base: float
    p: float
    verdict: str


def judged(better: bool, p: float) -> str:
    """ "holds" if ours is better with p < 0.05, "partly" if it is better with a larger p, else "does not hold"."""
    if not better:
        return "does not hold"
    return "holds" if p < SIGNIFICANCE else "partly"


def compare(ours: np.ndarray, base: np.ndarray, higher_is_better: bool) -> Comparison:
    """NaN (never reached) counts as worst."""
    require("studies", "scipy")
    from scipy.stats import mannwhitneyu

    worst = -np.inf if higher_is_better else np.inf
    a, b = (np.where(np.isnan(x), worst, x).astype(float) for x in (ours, base))
    p = float(mannwhitneyu(a, b, alternative="two-sided").pvalue)
    median_a, median_b = float(np.median(a)), float(np.median(b))
    better = median_a > median_b if higher_is_better else median_a < median_b
    return Comparison(median_a, median_b, p, judged(better, p))


def compare_counts(ours: int, of_ours: int, base: int, of_base: int) -> float:
    """Two-sided p of Fisher's exact test that as many seeds of one side as of the other do something."""
    require("studies", "scipy")
    from scipy.stats import fisher_exact

    return float(fisher_exact([[ours, of_ours - ours], [base, of_base - base]]).pvalue)


def combined(verdicts: list[str]) -> str:
    """Of a claim with several parts: "holds" if all do, "does not hold" if none even partly does."""
    if not verdicts:
        return "not measured"
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "partly"


def short(value: float) -> str:
    """Three digits; an infinite number of epochs is never."""
    return "never" if np.isinf(value) else f"{value:.3g}"


def told(comparison: Comparison) -> str:
    """The medians of both sides and p."""
    return f"{short(comparison.ours)} against {short(comparison.base)} (p = {comparison.p:.2g})"


def decisive(comparisons: list[tuple[str, Comparison]]) -> str:
    """The one number of a claim with several parts: of many, how often ours is better; of few, the weakest part."""
    if not comparisons:
        return ""
    if len(comparisons) == 1:
        return told(comparisons[0][1])
    if len(comparisons) < MIN_FOR_A_COUNT:
        label, weakest = min(comparisons, key=lambda item: _strength(item[1]))
        return f"weakest of {len(comparisons)}: {label} {told(weakest)}"
    better = sum(c.verdict != "does not hold" for _, c in comparisons)
    level = sum(c.ours == c.base for _, c in comparisons)
    return better_in(better, len(comparisons), level)


def better_in(better: int, count: int, level: int = 0) -> str:
    """How many of several comparisons ours wins; those that are level count for neither side of the sign test."""
    return f"better in {better} of {count} (p = {sign_test(better, count - better - level):.2g})"


def _strength(comparison: Comparison) -> tuple[int, float]:
    """Higher for a stronger part: by verdict; of those that hold by a small p, of those against it by a large p."""
    place = VERDICTS.index(comparison.verdict)
    return place, comparison.p if place == 0 else -comparison.p


def table(comparisons: list[tuple[str, Comparison]], sides: tuple[str, str] = ("harmonic", "standard")) -> str:
    """Markdown: a row a comparison."""
    rows = [f"| {label} | {short(c.ours)} | {short(c.base)} | {c.p:.2g} | {c.verdict} |" for label, c in comparisons]
    return "\n".join([f"| | {sides[0]} | {sides[1]} | p | |", "|---|---|---|---|---|", *rows])


def claims_page(title: str, claims: list[Claim], note: str) -> str:
    """Markdown: how many hold, a table of a line each, worst verdict first, and the details of each, folded."""
    ordered = sorted(claims, key=lambda claim: VERDICTS.index(claim.verdict))
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    tally = ", ".join(f"{verdict} {count}" for verdict, count in counts.items() if count)
    lines = [f"# {title}: claims", "", f"Verdicts of {len(claims)} claims: {tally}.", "", note, ""]
    lines += ["| claim of the paper | verdict | number that decides |", "|---|---|---|"]
    for claim in ordered:
        other = f" (leaking protocol: {claim.other})" if claim.other not in ("", claim.verdict) else ""
        lines.append(f"| {claim.text} | **{claim.verdict}**{other} | {claim.number or '-'} |")
    for claim in ordered:
        if claim.details:
            lines += ["", '<details markdown="1">', f"<summary>{claim.text}: {claim.verdict}</summary>", ""]
            lines += [claim.details, "", "</details>"]
    return "\n".join(lines) + "\n"


def write_claims(folder: Path, title: str, claims: list[Claim], note: str) -> None:
    """claims.md in `folder`."""
    write_text(folder / "claims.md", claims_page(title, claims, note))
