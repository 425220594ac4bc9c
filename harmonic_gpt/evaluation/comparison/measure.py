"""One model's row of a comparison: prediction, size, speed of training, and how readable it is."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from harmonic_gpt.data.tokens import TokenFolder, open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.interpretability import Interpretability, measure_interpretability
from harmonic_gpt.evaluation.measures.geometry import components_for, cumulative_explained_variance, norm_statistics
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.evaluation.tasks.probe_tasks import built_in_tasks, file_task
from harmonic_gpt.evaluation.tasks.word_pairs import Pairs
from harmonic_gpt.likelihood import token_counts
from harmonic_gpt.runs.load import LoadedModel
from harmonic_gpt.runs.metrics import read_metrics

PROBE_EXAMPLES = 400  # of a task, in a comparison


@dataclass
class Measured:
    """A model's row of results.json, its training metrics, and what figures draw."""

    row: dict
    metrics: list[dict]
    explained_variance: np.ndarray
    reading: Interpretability | None = None


def data_of(loaded: LoadedModel, data: str | None) -> TokenFolder:
    """The token folder to evaluate on: `data`, or the one that the run trained with. Raises InputError if neither is
    there."""
    if data is None:
        if loaded.state is None:
            raise InputError(f"{loaded.path} does not say what it was trained on; give --data FOLDER")
        data = loaded.state["config"]["data"]["dir"]
    folder = open_token_folder(data, loaded.model.config.vocab_size)
    if loaded.tokenizer is not None:
        folder.check_tokenizer(loaded.tokenizer)
    elif folder.vocab_size != loaded.model.config.vocab_size:
        raise InputError(
            f"{folder.path} has a vocabulary of {folder.vocab_size}, {loaded.path} one of {loaded.model.config.vocab_size}"
        )
    return folder


def measure(loaded: LoadedModel, folder: TokenFolder, tokens: int) -> Measured:
    """Perplexity on the leading `tokens` validation tokens, size, speed of training, and the embedding's geometry."""
    model, validation = loaded.model, folder.tokens("val")
    scored = perplexity(model, validation.read(0, min(len(validation), tokens)), tokenizer=loaded.tokenizer)
    centers = model.get_output_embeddings().weight
    curve = cumulative_explained_variance(centers)
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
        "exponent": getattr(model.config, "head_exponent", None) if loaded.head != "standard" else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "embedding_parameters": model.get_input_embeddings().weight.numel(),
        "trained_tokens": loaded.state["tokens"] if loaded.state else None,
        "train_tokens_per_second": median(speeds) if speeds else None,
        "validation": scored.to_dict(),
        "centers": {
            "norm": norm_statistics(centers),
            "norm_over_training": [
                [row["step"], row["center_norm_mean"]] for row in metrics if "center_norm_mean" in row
            ],
            "components_for_90_percent": components_for(curve, 0.9),
            "explained_variance_2": float(curve[min(1, len(curve) - 1)]),
            "explained_variance_50": float(curve[min(49, len(curve) - 1)]),
        },
    }
    return Measured(row, metrics, curve)


def read(
    loaded: LoadedModel, m: Measured, tasks: dict[str, Pairs], folder: TokenFolder, tokens: int,
    probe_files: list[str | Path], words: list[str] | None,
) -> None:  # fmt: skip
    """Add the interpretability of a model to its measurements, or why there is none."""
    if loaded.tokenizer is None:
        m.row["interpretability"], m.row["interpretability_missing"] = None, f"{loaded.path} has no tokenizer"
        return
    validation = folder.tokens("val")
    probes = []
    if tokens:
        examples = min(PROBE_EXAMPLES, tokens // 80)
        probes = built_in_tasks(loaded.tokenizer, token_counts(folder.tokens("train")), examples)
        probes += [file_task(path, loaded.tokenizer, examples) for path in probe_files]
    text = validation.read(0, min(len(validation), tokens))
    m.reading = measure_interpretability(loaded, tasks, text, tokens, probe_tasks=probes, words=words)
    m.row["interpretability"] = m.reading.row
