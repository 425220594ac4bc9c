"""One model's row of a comparison: prediction, size, speed of training, and how interpretable it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from harmonic_gpt.data.tokens import TokenFolder
from harmonic_gpt.evaluation.activations import centers_of, embedding_of, spec_of
from harmonic_gpt.evaluation.interpretability import Interpretability, measure_interpretability
from harmonic_gpt.evaluation.measures.geometry import (
    compression,
    cumulative_explained_variance,
    norm_statistics,
    spectrum,
)
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.evaluation.tasks.probe_tasks import built_in_tasks, file_tasks
from harmonic_gpt.evaluation.tasks.word_pairs import Pairs
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.runs.load import LoadedModel
from harmonic_gpt.runs.metrics import read_metrics

CENTER_SHAPE = ("components_for_90_percent", "explained_variance_2", "explained_variance_50")
PROBE_EXAMPLES = 400  # of a task, in a comparison


@dataclass
class Measured:
    """What is kept of a model once it has been measured: its row of results.json, its training metrics, and what
    figures draw."""

    row: dict
    metrics: list[dict]
    explained_variance: np.ndarray  # (K,) cumulative, of the centers
    interpretability: Interpretability | None = None


def measure(loaded: LoadedModel, folder: TokenFolder, tokens: int) -> Measured:
    """Perplexity on `tokens` validation tokens, size, speed of training, and the centers' geometry."""
    model, validation, spec = loaded.model, folder.leading("val", tokens), spec_of(loaded.model)
    scored = perplexity(model, validation.read(0, len(validation)), tokenizer=loaded.tokenizer)
    centers = centers_of(model)
    principal = spectrum(centers)
    shape = compression(centers, principal)
    metrics = read_metrics(loaded.run_dir) if loaded.run_dir else []
    if loaded.step is not None:
        metrics = [row for row in metrics if row["step"] <= loaded.step]
    speeds = [row["tokens_per_second"] for row in metrics if "tokens_per_second" in row]
    row = {
        "name": loaded.name,
        "path": loaded.path,
        "seed": loaded.state["config"]["seed"] if loaded.state else None,
        "step": loaded.step,
        "weights_sha256": loaded.weights_sha256,
        "head": loaded.head,
        "exponent": spec.exponent if spec is not None else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "embedding_parameters": embedding_of(model).numel(),
        "trained_tokens": loaded.state["tokens"] if loaded.state else None,
        "train_tokens_per_second": median(speeds) if speeds else None,
        "validation": scored.to_dict(),
        "centers": {
            "norm": norm_statistics(centers),
            "norm_over_training": [
                [row["step"], row["center_norm_mean"]] for row in metrics if "center_norm_mean" in row
            ],
            **{key: shape[key] for key in CENTER_SHAPE},
        },
    }
    return Measured(row, metrics, cumulative_explained_variance(principal))


def add_interpretability(
    measured: Measured,
    loaded: LoadedModel,
    tasks: dict[str, Pairs],
    folder: TokenFolder,
    tokens: int,
    probe_files: Sequence[str | Path],
    words: list[str] | None,
) -> None:
    """Add a model's interpretability to its measurements, or why there is none.

    Args:
        tasks: of word pairs. tokens: forward tokens in all; 0: the matrices only, and no probes.
        probe_files: texts with labels, probed beside the built-in tasks. words: to list the neighbors of.
    """
    if loaded.tokenizer is None:
        measured.row["interpretability"] = None
        measured.row["interpretability_missing"] = f"{loaded.path} has no tokenizer"
        return
    validation = folder.leading("val", tokens)
    probes, counts = [], None
    if tokens:
        counts = token_counts(folder)
        examples = min(PROBE_EXAMPLES, tokens // 80)
        probes = built_in_tasks(loaded.tokenizer, counts, examples)
        probes += file_tasks(probe_files, loaded.tokenizer, examples)
    text = validation.read(0, len(validation))
    measured.interpretability = measure_interpretability(
        loaded, tasks, text, tokens, probe_tasks=probes, words=words, counts=counts
    )
    measured.row["interpretability"] = measured.interpretability.row
