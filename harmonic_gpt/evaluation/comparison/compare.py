"""Arms of models side by side: results.json, figures, and a report."""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison import figures, report
from harmonic_gpt.evaluation.comparison.arms import compare_arms, parse_arms
from harmonic_gpt.evaluation.comparison.measure import Measured, data_of, measure, read
from harmonic_gpt.evaluation.measures.neighbors import word_tokens
from harmonic_gpt.evaluation.measures.similarity import layer_similarity
from harmonic_gpt.evaluation.tasks.probe_tasks import load_probe_file
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.likelihood import unigram_nats
from harmonic_gpt.runs.load import LoadedModel, load_model
from harmonic_gpt.runs.provenance import provenance

SCHEMA_VERSION = 2  # 2: arms, comparison, and each model's arm, seed and interpretability
RESULTS = "results.json"


def _unique_names(loaded: list[LoadedModel]) -> None:
    """Two models of one name are told apart by their paths."""
    names = [model.name for model in loaded]
    for model in loaded:
        if names.count(model.name) > 1:
            model.name = "/".join(Path(model.path).parts[-2:])
    if len({model.path for model in loaded}) < len(loaded):
        raise InputError("the same weights are named twice: " + ", ".join(model.path for model in loaded))


def compare(
    names: list[str] | dict[str, list[str]],
    out: str | Path,
    data: str | None = None,
    tokens: int = 65536,
    device: str = "cpu",
    *,
    word_pairs: str | Path | None = None,
    reading_tokens: int = 32768,
    probe_files: list[str] | None = None,
    words: list[str] | None = None,
) -> dict:
    """Measure each model and write `out`: results.json, figures (PNG and SVG), report.md, report.html. Returns the
    results.

    Args:
        names: models, each its own arm, or {arm: models}. A model is a run folder, a Hugging Face folder or a hub name;
            each must share the tokenizer of the data.
        data: token folder; None: the one each run was trained with, which must be the same.
        tokens: leading validation tokens to score. reading_tokens: forward tokens of the interpretability suite, a
        model.
        word_pairs: folder of relation tasks; None: the built-in ones. probe_files: texts with labels, beside the
        built-in probes.
        words: to list the neighbours of; None: a few common ones.
    """
    arms = names if isinstance(names, dict) else parse_arms(names)
    names = [name for members in arms.values() for name in members]
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and ((out / RESULTS).exists() or not any(out.iterdir()))):
        raise InputError(f"{out} exists and is not an earlier comparison; choose another folder")
    tasks = load_tasks(word_pairs)
    for path in probe_files or []:
        load_probe_file(path)  # a mistake there shows before any work
    loaded = [load_model(name, device) for name in names]
    _unique_names(loaded)
    folders = [data_of(model, data) for model in loaded]
    if len({folder.path.resolve() for folder in folders}) > 1:
        raise InputError("the models were trained on different data; say which to evaluate on with --data FOLDER")
    folder = folders[0]
    for model in loaded:
        if words and model.tokenizer is not None:
            word_tokens(model, words)  # so does one here
        print(f"evaluating {model.describe()}")
    measured = []
    for model in tqdm(loaded, desc="models", disable=None, leave=False):
        measured.append(measure(model, folder, tokens))
        read(model, measured[-1], tasks, folder, reading_tokens, probe_files or [], words)
    members, start = {}, 0
    for arm, models in arms.items():
        label = loaded[start].name if arm == names[start] and len(models) == 1 else arm  # a model that is its own arm
        members[label] = list(range(start, start + len(models)))
        start += len(models)
    for arm, indices in members.items():
        for i in indices:
            measured[i].row["arm"] = arm
    unigram = unigram_nats(folder.tokens("train"), folder.tokens("val"), tokens)
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
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        **provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    report.write(results, figures.draw_all(measured, members, results["comparison"], unigram, out), out)
    return results


def _comparison(measured: list[Measured], members: dict[str, list[int]]) -> dict:
    """Headlines and differences of the arms, and the similarity of their first runs' layers."""
    measures = [
        {"nats": (m.row["validation"]["nats_per_token"], np.empty(0))} | (m.reading.measures if m.reading else {})
        for m in measured
    ]
    ratios = [m.reading.ratios if m.reading else {} for m in measured]
    paper = [paper_losses(m.reading.row) if m.reading else {} for m in measured]
    result = compare_arms(members, measures, ratios, paper)
    result["similarity"] = []
    # The first run of each arm with that of the first arm, and two seeds of one arm, which say how alike is alike
    firsts = [indices[0] for indices in members.values()]
    pairs = [(firsts[0], other) for other in firsts[1:]] + [
        (indices[0], indices[1]) for indices in members.values() if len(indices) > 1
    ]
    for i, j in pairs:
        a, b = measured[i].reading, measured[j].reading
        if a and b and a.sample and b.sample and np.array_equal(a.positions, b.positions):
            names = {"first": measured[i].row["name"], "second": measured[j].row["name"]}
            result["similarity"].append(names | layer_similarity(a.sample, b.sample))
    return result


def paper_losses(row: dict) -> dict[str, tuple[float, float]]:
    rows = [r for r in row["matrices"]["centers"]["tasks"] if r["protocol"] == "paper" and r["loss"] is not None]
    return {r["task"]: (r["loss"], r["shuffled_loss"]) for r in rows}
