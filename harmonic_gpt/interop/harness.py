"""EleutherAI's lm-evaluation-harness, unchanged, on our models and tasks: the short form of its own command line."""

import io
import logging
import math
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from harmonic_gpt.errors import InputError, option
from harmonic_gpt.evaluation.comparison.results import RESULTS, SCHEMA_VERSION, read_results, row_of
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.extras import require
from harmonic_gpt.files import write_json
from harmonic_gpt.runs.load import LoadedModel, load_model

TASKS = Path(__file__).parent / "lm_eval_tasks"
Scores = dict[str, dict[str, float]]


def evaluate(
    name: str,
    tasks: list[str],
    *,
    data: str | None = None,
    out: str | Path | None = None,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> tuple[LoadedModel, Scores]:
    """Run tasks of the harness (its own, or ours: validation_text, relations, relation_*) on a model.

    Args:
        data: token folder or text file of validation_text; default: what the run was trained with.
        out: folder whose results.json takes the scores, beside what `compare` wrote there of the same weights.
        few_shot, limit: examples in front of a question, questions of a task; default: the task's own number, all.
    Returns: the model; {task: {metric: value}}. Raises InputError: no harness installed, no such task, `out` is
        something else.
    """
    if not tasks:
        raise InputError(f"{option('tasks')}: expected at least one, such as validation_text")
    require("lm-eval", "lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default it takes
    earlier = _earlier_results(Path(out).expanduser()) if out else None
    loaded = load_model(name, device)
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.path} has no tokenizer: the harness needs one")
    if "validation_text" in tasks and data is None:
        data = str(data_of(loaded, None).path)
    metadata = {"pretrained": loaded.path, "data": data}
    manager = TaskManager(include_path=str(TASKS), metadata=metadata)
    known = set(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        ours = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
        raise InputError(
            f"{option('tasks')}: no such task: {', '.join(unknown)}; ours are {ours}; `lm_eval ls tasks` lists the "
            "harness's"
        )
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
    # The harness has no switch for its bars
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        evaluated = simple_evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=few_shot,
            limit=limit,
            task_manager=manager,
            metadata=metadata,
            log_samples=False,
        )
    scores = {task: _numbers(values) for task, values in evaluated["results"].items()}
    if out is not None and earlier is not None:
        _write_results(Path(out).expanduser(), earlier, loaded, scores)
    return loaded, scores


def _numbers(values: dict) -> dict[str, float]:
    """{"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": ...} to {"acc": 0.5}: the finite numbers."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _earlier_results(folder: Path) -> dict:
    """What the folder's results.json holds; an empty one for a new or empty folder. Raises InputError for a folder of
    something else."""
    if (folder / RESULTS).exists():
        return read_results(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no {RESULTS}; name a new folder, or one of `eval.py compare`")
    return {"schema_version": SCHEMA_VERSION, "models": []}


def _write_results(out: Path, results: dict, loaded: LoadedModel, scores: Scores) -> None:
    row = row_of(results["models"], loaded.weights_sha256)
    if row is None:
        row = {"name": loaded.name, "path": loaded.path, "step": loaded.step, "weights_sha256": loaded.weights_sha256}
        results["models"].append(row)
    row["lm_eval"] = row.get("lm_eval", {}) | scores
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULTS, results)
