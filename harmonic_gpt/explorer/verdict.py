"""The headline table of a comparison, as `eval.py compare` wrote it."""

from pathlib import Path

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.arms import HEADLINES
from harmonic_gpt.evaluation.comparison.report import verdict as verdict_lines
from harmonic_gpt.evaluation.comparison.results import RESULTS, read_results
from harmonic_gpt.extras import require


def read_verdict(report: str | Path, weights: list[str | None]) -> dict:
    """The headlines, differences and sentences of a comparison of two or more arms.

    Args:
        report: folder with results.json.
        weights: SHA-256 of the weights of the models that the page shows.
    Raises InputError for a folder without results of `compare`, or one of an arm alone.
    """
    require("eval", "jinja2")
    results = read_results(report)
    comparison = results.get("comparison") or {}
    if results.get("schema_version", 0) < 3 or not comparison.get("differences"):
        raise InputError(f"{Path(report) / RESULTS}: expected a comparison of two arms by this version of `compare`")
    measured = {model.get("weights_sha256") for model in results["models"]}
    heads = {model["arm"]: model["head"] for model in results["models"]}
    return {
        "lines": verdict_lines(results),
        "headlines": {key: row for key, row in comparison["headlines"].items() if key in HEADLINES},
        "differences": comparison["differences"],
        "heads": heads,
        "same_weights": all(sha is not None and sha in measured for sha in weights),
        "validation_tokens": results["data"]["validation_tokens"],
        "unigram_nats_per_token": results["data"]["unigram_nats_per_token"],
    }
