"""Arms of models side by side: results.json, figures, and a report."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from harmonic_gpt.data.tokens import TokenFolder, open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation import report
from harmonic_gpt.evaluation.arms import compare_arms, parse_arms
from harmonic_gpt.evaluation.geometry import components_for, cumulative_explained_variance, norm_statistics
from harmonic_gpt.evaluation.interpretability import Interpretability, measure_interpretability
from harmonic_gpt.evaluation.models import LoadedModel, load_model
from harmonic_gpt.evaluation.perplexity import perplexity, unigram_nats
from harmonic_gpt.evaluation.word_pairs import load_tasks
from harmonic_gpt.training.checkpoint import provenance
from harmonic_gpt.training.tracking import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

SCHEMA_VERSION = 2  # 2: arms, comparison, and each model's arm, seed and interpretability
RESULTS = "results.json"


@dataclass
class Measured:
    """One model's row of the comparison, its loss curve and its compression curve."""

    row: dict
    metrics: list[dict]
    explained_variance: np.ndarray
    reading: Interpretability | None = None


def data_of(loaded: LoadedModel, data: str | None) -> TokenFolder:
    """The token folder to evaluate on: `data`, or the one that the run trained with. Raises InputError if neither is there."""
    if data is None:
        if loaded.state is None:
            raise InputError(f"{loaded.path} does not say what it was trained on; give --data FOLDER")
        data = loaded.state["config"]["data"]["dir"]
    folder = open_token_folder(data, loaded.model.config.vocab_size)
    if loaded.tokenizer is not None:
        folder.check_tokenizer(loaded.tokenizer)
    elif folder.vocab_size != loaded.model.config.vocab_size:
        raise InputError(f"{folder.path} has a vocabulary of {folder.vocab_size}, {loaded.path} one of {loaded.model.config.vocab_size}")
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
    parameters = sum(p.numel() for p in model.parameters())
    row = {
        "name": loaded.name,
        "path": loaded.path,
        "step": loaded.step,
        "weights_sha256": loaded.weights_sha256,
        "head": loaded.head,
        "exponent": getattr(model.config, "head_exponent", None) if loaded.head != "standard" else None,
        "parameters": parameters,
        "embedding_parameters": model.get_input_embeddings().weight.numel(),
        "trained_tokens": loaded.state["tokens"] if loaded.state else None,
        "train_tokens_per_second": median(speeds) if speeds else None,
        "validation": scored.to_dict(),
        "centers": {
            "norm": norm_statistics(centers),
            "components_for_90_percent": components_for(curve, 0.9),
            "explained_variance_2": float(curve[min(1, len(curve) - 1)]),
            "explained_variance_50": float(curve[min(49, len(curve) - 1)]),
        },
    }
    return Measured(row, metrics, curve)


def _unique_names(loaded: list[LoadedModel]) -> None:
    """Two models of one name are told apart by their paths."""
    names = [model.name for model in loaded]
    for model in loaded:
        if names.count(model.name) > 1:
            model.name = "/".join(Path(model.path).parts[-2:])
    if len({model.path for model in loaded}) < len(loaded):
        raise InputError("the same weights are named twice: " + ", ".join(model.path for model in loaded))


def _read(loaded: LoadedModel, m: Measured, tasks: dict, folder: TokenFolder, tokens: int) -> None:
    """Add the interpretability of a model to its measurements, or why there is none."""
    if loaded.tokenizer is None:
        m.row["interpretability"], m.row["interpretability_missing"] = None, f"{loaded.path} has no tokenizer"
        return
    validation = folder.tokens("val")
    m.reading = measure_interpretability(loaded, tasks, validation.read(0, min(len(validation), tokens)), tokens)
    m.row["interpretability"] = m.reading.row


def compare(
    names: list[str] | dict[str, list[str]],
    out: str | Path,
    data: str | None = None,
    tokens: int = 65536,
    device: str = "cpu",
    *,
    word_pairs: str | Path | None = None,
    reading_tokens: int = 32768,
) -> dict:
    """Measure each model and write `out`: results.json, figures (PNG and SVG), report.md, report.html. Returns the results.

    Args:
        names: models, each its own arm, or {arm: models}. A model is a run folder, a Hugging Face folder or a hub name; each must
            share the tokenizer of the data.
        data: token folder; None: the one each run was trained with, which must be the same.
        tokens: leading validation tokens to score. reading_tokens: forward tokens of the interpretability suite, a model.
        word_pairs: folder of relation tasks; None: the built-in ones.
    """
    arms = names if isinstance(names, dict) else parse_arms(names)
    names = [name for members in arms.values() for name in members]
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and ((out / RESULTS).exists() or not any(out.iterdir()))):
        raise InputError(f"{out} exists and is not an earlier comparison; choose another folder")
    tasks = load_tasks(word_pairs)
    loaded = [load_model(name, device) for name in names]
    _unique_names(loaded)
    folders = [data_of(model, data) for model in loaded]
    if len({folder.path.resolve() for folder in folders}) > 1:
        raise InputError("the models were trained on different data; say which to evaluate on with --data FOLDER")
    folder = folders[0]
    for model in loaded:
        print(f"evaluating {model.describe()}")
    measured = []
    for model in tqdm(loaded, desc="models", disable=None, leave=False):
        measured.append(measure(model, folder, tokens))
        _read(model, measured[-1], tasks, folder, reading_tokens)
    members, start = {}, 0
    for arm, models in arms.items():
        label = loaded[start].name if arm == names[start] and len(models) == 1 else arm  # a model that is its own arm
        members[label] = list(range(start, start + len(models)))
        start += len(models)
    for arm, indices in members.items():
        for i in indices:
            measured[i].row["arm"] = arm
            measured[i].row["seed"] = loaded[i].state["config"]["seed"] if loaded[i].state else None
    measures = [
        {"nats": (m.row["validation"]["nats_per_token"], np.empty(0))} | (m.reading.measures if m.reading else {}) for m in measured
    ]
    results = {
        "schema_version": SCHEMA_VERSION,
        "data": {
            "path": str(folder.path),
            "source": folder.manifest["request"]["source"] if folder.manifest else None,
            "validation_tokens": min(len(folder.tokens("val")), tokens),
            "unigram_nats_per_token": unigram_nats(folder.tokens("train"), folder.tokens("val"), tokens),
        },
        "models": [m.row for m in measured],
        "comparison": compare_arms(members, measures, [m.reading.ratios if m.reading else {} for m in measured]),
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "device": str(device)},
        **provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _plot_losses(measured, results["data"]["unigram_nats_per_token"], out / "loss_curves.png")
    _plot_explained_variance(measured, out / "explained_variance.png")
    _plot_center_norms(measured, out / "center_norms.png")
    figures = [("center_norms.png", "norm of the centers over training")] if (out / "center_norms.png").exists() else []
    if _plot_parallelograms(measured, out / "parallelograms.png"):
        figures.insert(0, ("parallelograms.png", "parallelogram loss over the mean of shuffled pairs, by task"))
    text = _report(results, figures)
    (out / "report.md").write_text(text, encoding="utf-8")
    report.write_html(text, out)
    return results


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the comparison: a column a model, a row a measurement."""
    models = results["models"]
    header = ["", *(m["name"] for m in models)]

    def row(label: str, form: str, value) -> list[str]:
        values = [value(m) for m in models]
        return [label, *("-" if v is None else format(v, form) for v in values)]

    return header, [
        row("head", "", lambda m: m["head"]),
        row("exponent n", ".4g", lambda m: m["exponent"]),
        row("step", ",", lambda m: m["step"]),
        row("trained tokens", ",", lambda m: m["trained_tokens"]),
        row("parameters", ",", lambda m: m["parameters"]),
        row("validation loss (nats/token)", ".4f", lambda m: m["validation"]["nats_per_token"]),
        row("perplexity", ".2f", lambda m: m["validation"]["perplexity"]),
        row("bits per byte", ".4f", lambda m: m["validation"]["bits_per_byte"]),
        row("training tokens/s (median)", ",.0f", lambda m: m["train_tokens_per_second"]),
        row("components for 90 % variance", ",", lambda m: m["centers"]["components_for_90_percent"]),
        row("variance in 50 components", ".3f", lambda m: m["centers"]["explained_variance_50"]),
        row("norm of centers (mean)", ".3f", lambda m: m["centers"]["norm"]["mean"]),
        row("norm of centers (std)", ".3f", lambda m: m["centers"]["norm"]["std"]),
    ]


def verdict(results: dict) -> str:
    """Which model predicts best, by how much, and what is not known."""
    ranked = sorted(results["models"], key=lambda m: m["validation"]["nats_per_token"])
    best = ranked[0]["validation"]["nats_per_token"]
    gaps = [f"{m['name']} needs {m['validation']['nats_per_token'] / best - 1:.2%} more nats" for m in ranked[1:]]
    if not gaps:
        return "One model: nothing to compare it with."
    several = any(len(members) > 1 for members in results.get("comparison", {}).get("arms", {}).values())
    known = "" if several else " One run of each: the spread over seeds is not known."
    return f"Best at prediction: {ranked[0]['name']}; {', '.join(gaps)}.{known}"


def _unequal_training(models: list[dict]) -> str | None:
    """A warning, where the models have not seen as much text."""
    tokens = {m["trained_tokens"] for m in models}
    if len(tokens) == 1 and None not in tokens:
        return None
    seen = ", ".join(f"{m['name']} {m['trained_tokens']:,}" if m["trained_tokens"] else f"{m['name']} unknown" for m in models)
    return f"**Not a fair pair**: the models have not been trained on the same number of tokens ({seen})."


def _report(results: dict, figures: list[tuple[str, str]]) -> str:
    header, rows = table(results)
    lines = [
        "# Comparison",
        "",
        *(line for text in report.first_screen(results["comparison"]) for line in (text, "")),
        *([unequal, ""] if (unequal := _unequal_training(results["models"])) else []),
        *report.table(*report.headline_table(results["comparison"])),
        "Parallelogram loss is divided by that of the same words paired at random: 1 is no structure, and collapse does not lower it. "
        "Words that merely lie near their partner lower it without forming parallelograms; the cosine of offsets does not count those.",
        "",
        "## Prediction",
        "",
        verdict(results),
        "",
        f"Validation: the first {results['data']['validation_tokens']:,} tokens of `{results['data']['path']}`, every token but the first "
        f"scored once in windows that overlap by half. Predicting by token frequency alone costs "
        f"{results['data']['unigram_nats_per_token']:.4f} nats a token.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "![loss curves](loss_curves.png)",
        "",
        "![explained variance of the centers](explained_variance.png)",
        "",
        *report.reading_sections(results, figures),
        "Weights evaluated:",
        "",
        *(f"- {m['name']}: `{m['path']}`, step {m['step']}, sha256 `{m['weights_sha256']}`" for m in results["models"]),
        "",
    ]
    return "\n".join(lines)


def _figure():
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _plot_losses(measured: list[Measured], unigram: float, path: Path) -> None:
    figure, axes = _figure()
    for i, m in enumerate(measured):
        train = [(row["tokens"], row["loss"]) for row in m.metrics if "loss" in row]
        per_step = next((row["tokens"] / row["step"] for row in m.metrics if row.get("tokens")), None)
        validation = [(row["step"] * per_step, row["val_loss"]) for row in m.metrics if "val_loss" in row and per_step]
        if train:
            axes.plot(*zip(*train, strict=True), color=f"C{i}", alpha=0.3, linewidth=1)
        if validation:
            axes.plot(*zip(*validation, strict=True), color=f"C{i}", marker="o", markersize=3, label=f"{m.row['name']} (validation)")
    axes.axhline(unigram, color="grey", linestyle=":", label="token frequencies alone")
    axes.set(xlabel="training tokens", ylabel="nats a token", title="Loss (faint: training batches)")
    curves = [row[key] for m in measured for row in m.metrics for key in ("loss", "val_loss") if key in row]
    if curves:  # the first steps, far above, would flatten the rest
        axes.set_ylim(min(curves) - 0.05, unigram + 0.5)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend()
    _save(figure, path)


def _plot_explained_variance(measured: list[Measured], path: Path) -> None:
    figure, axes = _figure()
    for m in measured:
        axes.plot(np.arange(1, len(m.explained_variance) + 1), m.explained_variance, label=m.row["name"])
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="principal components", ylabel="cumulative explained variance", title="Class centers")
    axes.legend()
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"))
    plt.close(figure)


def _plot_center_norms(measured: list[Measured], path: Path) -> None:
    """Norm of the centers over training, from each run's metrics; no file where no run has any."""
    curves = [[(row["step"], row["center_norm_mean"]) for row in m.metrics if "center_norm_mean" in row] for m in measured]
    if not any(curves):
        return
    figure, axes = _figure()
    for i, (m, curve) in enumerate(zip(measured, curves, strict=True)):
        if curve:
            axes.plot(*zip(*curve, strict=True), color=f"C{i}", marker="o", markersize=3, label=m.row["name"])
    axes.set(xlabel="step", ylabel="mean norm of the centers", title="Weight norm over training")
    axes.legend()
    _save(figure, path)


def _plot_parallelograms(measured: list[Measured], path: Path) -> bool:
    """Cumulative distribution of each task's losses, in means of the shuffled control. False where no task has any."""
    tasks = sorted({task for m in measured if m.reading for task in m.reading.losses})
    if not tasks:
        return False
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3 * columns + 0.6, 2.4 * rows + 0.8), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    handles = {}
    for axes, task in zip(grid.flat, tasks, strict=False):
        for i, m in enumerate(measured):
            if m.reading and task in m.reading.losses:
                losses = np.sort(m.reading.losses[task])
                [handles[m.row["name"]]] = axes.plot(losses, np.linspace(0, 1, len(losses)), color=f"C{i}", linewidth=1.3)
        axes.axvline(1, color="grey", linestyle=":", linewidth=1)
        axes.set_title(task, fontsize=9)
        axes.set_xlim(0, 2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("parallelogram loss / mean loss of shuffled pairs (left is better, 1: no structure)", fontsize=9)
    figure.supylabel("share of quadruples", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize=8)
    _save(figure, path)
    return True
