"""results.json of a comparison: a row of every model, and how the arms compare."""

import json
from pathlib import Path

from harmonic_gpt.errors import InputError, reason_of

RESULTS = "results.json"
# 2: arms, comparison, and each model's arm, seed and interpretability. 3: "neighbors", and a name of each headline.
# 4: in "interpretability" "lens", "label_distance" and "rare_tokens", in "class_centers" "own_center", a headline of
# each; "method" of intervals
SCHEMA_VERSION = 4


def row_of(rows: list[dict], weights_sha256: str | None) -> dict | None:
    """The row of the model with these weights. None without one, or where it is not known which weights they are."""
    if weights_sha256 is None:
        return None
    return next((row for row in rows if row.get("weights_sha256") == weights_sha256), None)


def read_results(folder: str | Path) -> dict:
    """results.json of a folder that `eval.py compare` or `eval.py lm-eval` wrote, of any schema version. Raises
    InputError for a folder without it, or a file of something else."""
    path = Path(folder).expanduser() / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(row, dict) for row in results["models"]):
            raise TypeError("a model's row is not an object")
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the results of an evaluation ({reason_of(error)})") from error
