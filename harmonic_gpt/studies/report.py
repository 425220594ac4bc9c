"""From a folder of finished cells: results.jsonl (a line a model), the paper's figures, claims.md."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.measures.geometry import cumulative_explained_variance
from harmonic_gpt.extras import require
from harmonic_gpt.files import write_text
from harmonic_gpt.studies import algorithmic_claims, figures, structure
from harmonic_gpt.studies.algorithmic import MAIN_FRACTION, load
from harmonic_gpt.studies.batched import Cell, Result
from harmonic_gpt.studies.claims import write_claims
from harmonic_gpt.studies.tasks import leak, split, task

NORM_WINDOW = 0.75  # the norm at the end is compared with the one after this share of the epochs


@dataclass
class Trained:
    """One model: its row of results.jsonl, and what the figures draw. points: (P, D) embeddings; history: (checks,)
    each."""

    row: dict
    points: np.ndarray
    epochs: np.ndarray
    train: np.ndarray
    test: np.ndarray


def report(out: str) -> Path:
    """Measure, draw and judge every finished cell of `out`/cells. Raises InputError if there is none."""
    require("studies", "matplotlib", "scipy", "sklearn")
    folder = Path(out)
    paths = sorted((folder / "cells").glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}/cells holds no finished cell: run harmonic-gpt study algorithmic --out {out} first")
    loaded = [load(path) for path in paths]
    trained = [model for cell, result, _ in loaded for model in measure(cell, result)]
    rows = [model.row for model in trained]
    write_text(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    figures.algorithmic(folder, trained)
    claims = algorithmic_claims.claims(rows)
    cpu = sum(time["cpu_seconds"] for _, _, time in loaded)
    note = f"{algorithmic_claims.note(rows)} {len(loaded)} cells took {cpu / 60:.0f} minutes of CPU."
    write_claims(folder, "Algorithmic tasks", claims, note)
    return folder / "claims.md"


def measure(cell: Cell, result: Result) -> list[Trained]:
    """Every model of a cell. Structure is measured at the main setting only; the fraction sweep needs accuracy
    alone."""
    t = task(cell.task)
    kind = cell.name.split(".")[0]
    models = []
    for i, member in enumerate(cell.members):
        points = result.embedding[i][t.points]
        epochs, norm = result.epochs[i], result.norm[i]
        used = np.isfinite(epochs)
        train, test = split(t, member.protocol, member.fraction, member.seed)
        row = {
            "kind": kind,
            "task": cell.task,
            "model": f"{cell.head}_{cell.architecture}",
            **member._asdict(),
            "weight_decay": cell.weight_decay,
            "epochs": _rounded(epochs[used][-1]),
            "reason": result.reason[i],
            "leak": _rounded(leak(t, train, test)),
            "test_accuracy": _rounded(result.test_accuracy[i]),
            "train_epochs": _rounded(structure.epochs_to_threshold(epochs, result.train[i])),
            "test_epochs": _rounded(structure.epochs_to_threshold(epochs, result.test[i])),
            "norm": _rounded(norm[used][-1]),
            "norm_growth": _rounded(norm[used][-1] / norm[used][int(NORM_WINDOW * used.sum())]),
        }
        if member.fraction == MAIN_FRACTION and result.reason[i] != "diverged":
            row |= _structure(cell.task, points, member.seed)
        models.append(Trained(row, points, epochs[used], result.train[i][used], result.test[i][used]))
    return models


def _structure(task_name: str, points: np.ndarray, seed: int) -> dict:
    explained = cumulative_explained_variance(torch.from_numpy(points))
    row: dict = {
        "explained": [_rounded(x) for x in explained[:10]],
        "structure": _rounded(structure.METRICS[task_name].function(points)),
    }
    if task_name == "permutations":
        best, row["cosets"] = structure.best_coset_silhouette(points)
        shuffled = np.random.default_rng(seed).permutation(points)
        row |= {
            "silhouette": _rounded(best),
            "silhouette_shuffled": _rounded(structure.best_coset_silhouette(shuffled)[0]),
        }
    return row


def _rounded(value: float) -> float | None:
    """Four digits; None for NaN (never reached), which JSON has not."""
    return None if np.isnan(value) else float(f"{value:.4g}")
