"""Arms of models side by side: results.json, figures, and a report."""

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from harmonic_gpt.data.manifest import SPLITS
from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison import figures, report
from harmonic_gpt.evaluation.comparison.arms import Measures, compare_arms, parse_arms
from harmonic_gpt.evaluation.comparison.measure import Measured, add_interpretability, measure
from harmonic_gpt.evaluation.comparison.results import RESULTS, SCHEMA_VERSION, read_results, row_of
from harmonic_gpt.evaluation.measures.neighbors import word_tokens
from harmonic_gpt.evaluation.measures.similarity import layer_similarity
from harmonic_gpt.evaluation.names import distinct_names
from harmonic_gpt.evaluation.tasks.probe_tasks import load_probe_files
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.extras import require
from harmonic_gpt.files import write_json
from harmonic_gpt.likelihood import unigram_nats
from harmonic_gpt.progress import show_progress
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.provenance import provenance


def compare(
    models: list[str] | dict[str, list[str]],
    out: str | Path,
    data: str | None = None,
    tokens: int = 65536,
    device: str | None = None,
    *,
    word_pairs: str | Path | None = None,
    reading_tokens: int = 32768,
    probe_files: Sequence[str | Path] = (),
    words: list[str] | None = None,
    verify: bool = False,
) -> dict:
    """Measure each model and write `out`: results.json, figures (PNG and SVG), report.md, report.html. Returns the
    results. What `lm-eval --out` added to the same weights in an earlier results.json there is kept.

    One model is in memory at a time. Every model is loaded once to be checked before the first one is measured, so that
    a mistake shows in seconds; then each is loaded again, measured, and dropped.

    Args:
        models: each its own arm, or {arm: models}. A model is a run folder, a Hugging Face folder or a hub name; each
            must share the tokenizer of the data.
        data: token folder; None: the one each run was trained with, which must be the same.
        tokens: validation tokens to score, the first of each source. reading_tokens: forward tokens of the
            interpretability suite, for each model.
        device: None: CUDA where there is one, else the CPU.
        word_pairs: folder of relation tasks; None: the built-in ones. probe_files: texts with labels, beside the
            built-in probes.
        words: to list the neighbors of; None: a few common ones.
        verify: read the token files anew, whatever is noted about them.
    Raises InputError before any measurement: a model, data or a file that is not there or does not fit, a library of
        the extra `eval` that is missing, or an `out` that is something else or has lm-eval's scores of other models.
    """
    require("eval", "jinja2", "markdown_it", "matplotlib", "scipy", "sklearn")
    arms = models if isinstance(models, dict) else parse_arms(models)
    names = [name for members in arms.values() for name in members]
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and ((out / RESULTS).exists() or not any(out.iterdir()))):
        raise InputError(f"{out} exists and is not an earlier comparison; choose another folder")
    tasks = load_tasks(word_pairs)
    load_probe_files(probe_files)
    labels, folder, weights = _check(names, data, device, words)
    members = _members(arms, labels)
    earlier = _scored(out, weights)
    for split in SPLITS:
        if verify and split in folder.splits:
            folder.verify(split, anew=True)
        folder.tokens(split)

    def measured_of(name: str, label: str) -> Measured:
        """A function, so that its model is gone before the next one is loaded."""
        loaded = load_model(name, device)
        loaded.name = label
        tqdm.write(f"evaluating {loaded.describe()}")
        measured = measure(loaded, folder, tokens)
        add_interpretability(measured, loaded, tasks, folder, reading_tokens, probe_files, words)
        measured.row["device"] = str(loaded.model.device)
        if row := row_of(earlier, loaded.weights_sha256):
            measured.row["lm_eval"] = row["lm_eval"]
        return measured

    pairs = list(zip(names, labels, strict=True))
    measured = [measured_of(name, label) for name, label in show_progress(pairs, desc="models")]
    for arm, indices in members.items():
        for i in indices:
            measured[i].row["arm"] = arm
    unigram = unigram_nats(folder, tokens)
    results = {
        "schema_version": SCHEMA_VERSION,
        "data": {
            "path": str(folder.path),
            "source": folder.manifest["request"]["source"] if folder.manifest else None,
            "validation_tokens": min(len(folder.tokens("val")), tokens),
            "unigram_nats_per_token": unigram,
        },
        "models": [m.row for m in measured],
        "comparison": _comparison(measured, members),
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        **provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULTS, results)
    report.write(results, figures.draw_all(measured, members, results["comparison"], unigram, out), out)
    return results


def _check(
    names: list[str], data: str | None, device: str | None, words: list[str] | None
) -> tuple[list[str], TokenFolder, list[str | None]]:
    """Load each model and let it go: (what each is called, the data that all share, the hashes of the weights). Raises
    InputError."""

    def checked(name: str) -> tuple[str, str, TokenFolder, str | None]:
        loaded = load_model(name, device)
        if words and loaded.tokenizer is not None:
            word_tokens(loaded, words)
        return loaded.name, loaded.path, data_of(loaded, data), loaded.weights_sha256

    labels, paths, folders, weights = zip(*map(checked, names), strict=True)
    if len(set(paths)) < len(paths):
        raise InputError("the same weights are named twice: " + ", ".join(paths))
    if len({folder.path.resolve() for folder in folders}) > 1:
        raise InputError("the models were trained on different data; say which to evaluate on with --data FOLDER")
    return distinct_names(labels, paths), folders[0], list(weights)


def _scored(out: Path, weights: list[str | None]) -> list[dict]:
    """Rows with scores of `lm-eval` in an earlier results.json of `out`. Raises InputError if one is of other weights:
    its scores would be lost."""
    rows = [row for row in read_results(out)["models"] if row.get("lm_eval")] if (out / RESULTS).exists() else []
    if lost := [str(row.get("name")) for row in rows if row.get("weights_sha256") not in set(weights) - {None}]:
        raise InputError(
            f"{out / RESULTS} has scores of lm-eval for {', '.join(lost)}, which are not among the models to compare; "
            "compare these too, or choose another folder"
        )
    return rows


def _members(arms: dict[str, list[str]], labels: list[str]) -> dict[str, list[int]]:
    """Name of each arm -> indices of its models. An arm that is one model under its own name is called as the model.
    Raises InputError if two arms are called alike."""
    members, start = {}, 0
    for arm, names in arms.items():
        label = labels[start] if [arm] == names else arm
        if label in members:
            raise InputError(f"two arms are called {label!r}; name them apart: --arm NAME MODEL... --arm NAME MODEL...")
        members[label] = list(range(start, start + len(names)))
        start += len(names)
    return members


def _comparison(measured: list[Measured], members: dict[str, list[int]]) -> dict:
    """Headlines and differences of the arms, and the similarity of their first runs' layers."""
    measures: list[Measures] = [{"nats": (m.row["validation"]["nats_per_token"], np.empty(0))} for m in measured]
    for m, known in zip(measured, measures, strict=True):
        known.update(m.interpretability.measures if m.interpretability else {})
    ratios = [m.interpretability.ratios if m.interpretability else {} for m in measured]
    paper = [paper_losses(m.interpretability.row) if m.interpretability else {} for m in measured]
    # The first run of each arm with that of the first arm; two seeds of one arm, to compare those similarities with
    firsts = [indices[0] for indices in members.values()]
    pairs = [(firsts[0], other) for other in firsts[1:]]
    pairs += [(indices[0], indices[1]) for indices in members.values() if len(indices) > 1]
    similarity = []
    for i, j in pairs:
        a, b = measured[i].interpretability, measured[j].interpretability
        if a and b and a.sample and b.sample and np.array_equal(a.positions, b.positions):
            names = {"first": measured[i].row["name"], "second": measured[j].row["name"]}
            similarity.append(names | layer_similarity(a.sample, b.sample))
    seeds = [m.row["seed"] for m in measured]
    return compare_arms(members, measures, ratios, paper, seeds) | {"similarity": similarity}


def paper_losses(row: dict) -> dict[str, tuple[float, float]]:
    """{task: (mean loss, the same of shuffled pairs)} of the centers in the paper's protocol."""
    rows = [r for r in row["matrices"]["centers"]["tasks"] if r["protocol"] == "paper" and r["loss"] is not None]
    return {r["task"]: (r["loss"], r["shuffled_loss"]) for r in rows}
