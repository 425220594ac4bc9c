"""How readable one model is: a dict for results.json, the replicates that compare models, the curves that are drawn."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from tqdm import tqdm

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import head_input, text_states, word_states
from harmonic_gpt.evaluation.analogies import analogy_ranks, analogy_row
from harmonic_gpt.evaluation.class_centers import class_centers
from harmonic_gpt.evaluation.geometry import compression, cumulative_explained_variance, mean_cosine, spectrum
from harmonic_gpt.evaluation.models import LoadedModel
from harmonic_gpt.evaluation.parallelogram import FEWEST_PAIRS, paper_test, strict_test
from harmonic_gpt.evaluation.uncertainty import weighted_means
from harmonic_gpt.evaluation.word_pairs import Pairs, token_pairs

SPACES = (2, 10, None)  # principal components; None: all of space
REFERENCE_TOKENS = 2000  # stand for the vocabulary where running all of it costs too much: in the layers
SEED = 0


@dataclass
class Interpretability:
    row: dict
    losses: dict[str, np.ndarray] = field(default_factory=dict)  # task -> losses over their control (strict, full space)
    paper_losses: dict[str, np.ndarray] = field(default_factory=dict)
    ratios: dict[str, np.ndarray] = field(default_factory=dict)  # task -> bootstrap replicates
    measures: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)  # headline -> (value, replicates)
    curve: np.ndarray | None = None


def measure_interpretability(
    loaded: LoadedModel,
    tasks: dict[str, Pairs],
    text: np.ndarray | None = None,
    tokens: int = 32768,
    layers: list[int] | None = None,
    protocol: str = "both",
) -> Interpretability:
    """Geometry of a model's centers and, within a budget of forward tokens, of its layers.

    Args:
        text: held-out token ids; None (or tokens 0): the matrices only, no forward pass.
        layers: for word pairs in the layers; default first, middle, last. protocol: "paper", "strict" or "both".
    Raises InputError for a model without tokenizer, or a layer that it does not have.
    """
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.path} has no tokenizer: its tokens cannot be matched with words; copy one into that folder")
    model = loaded.model
    depth = model.config.num_hidden_layers
    layers = sorted({0, depth // 2, depth}) if layers is None else layers
    if bad := [layer for layer in layers if not 0 <= layer <= depth]:
        raise InputError(f"--layers: {bad} asked for, {loaded.name} has 0 (embeddings) to {depth}")
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{loaded.path} has no output embedding: nothing to measure")
    centers, inputs = head.weight.detach().cpu().float(), model.get_input_embeddings().weight.detach().cpu().float()
    tied = head.weight is model.get_input_embeddings().weight
    pairs = {p: {t: token_pairs(v, loaded.tokenizer, p) for t, v in tasks.items()} for p in ("paper", "strict")}
    result = Interpretability({"seed": SEED, "tied": tied, "matrices": {}, "flags": []})

    for name, matrix in ({"centers": centers} | ({} if tied else {"embedding": inputs})).items():
        found = spectrum(matrix)
        shape = compression(matrix, found)
        if shape["collapsed"]:
            result.row["flags"].append(f"{name}: collapsed, all rows are alike")
        elif shape["effective_rank"] < 3:
            result.row["flags"].append(f"{name}: nearly one line, effective rank {shape['effective_rank']:.2f}")
        section = {"compression": shape, "tasks": _tasks(matrix, found, pairs, protocol, result if name == "centers" else None)}
        result.row["matrices"][name] = section
        if name == "centers":
            result.curve = cumulative_explained_variance(found)
    _analogies(centers, pairs["strict"], result)
    _headlines(result)
    if text is not None and tokens > 0:
        _from_text(loaded, centers, text, tokens, layers, pairs, protocol, result)
    return result


def _tasks(matrix: Tensor, found, pairs: dict, protocol: str, keep: Interpretability | None, spaces=SPACES) -> list[dict]:
    rows = []
    for task in tqdm(pairs["strict"], desc="word pairs", disable=None, leave=False):
        if protocol in ("paper", "both"):
            test = paper_test(matrix, found, pairs["paper"][task], SEED)
            rows.append({"task": task} | test.row)
            if keep is not None:
                keep.paper_losses[task] = test.losses
        for components in spaces if protocol in ("strict", "both") else ():
            test = strict_test(matrix, found, pairs["strict"][task], components, SEED)
            rows.append({"task": task} | test.row)
            if keep is not None and components is None and len(test.ratios):
                keep.losses[task] = test.losses / test.row["control"]
                keep.ratios[task] = test.ratios
                if len(test.cosines):
                    keep.measures[f"cosine:{task}"] = (test.row["offset_cosine"], test.cosines)
    return rows


def _analogies(centers: Tensor, pairs: dict, result: Interpretability) -> None:
    rows, hits = [], []
    for task, found in pairs.items():
        if len(found.ids) < FEWEST_PAIRS:
            continue
        ranks = analogy_ranks(centers, found.ids, SEED)
        rows.append({"task": task} | analogy_row(ranks))
        hits.append(ranks["distance"] < 5)
    result.row["analogies"] = rows
    if hits and len(every := np.concatenate(hits)):
        result.measures["analogies"] = (float(every.mean()), weighted_means(every))


def _headlines(result: Interpretability) -> None:
    """Means over tasks, each task alike; the replicates of a task were drawn independently."""
    cosines = [result.measures.pop(key) for key in [k for k in result.measures if k.startswith("cosine:")]]
    if result.ratios:
        rows = [
            r for r in result.row["matrices"]["centers"]["tasks"] if r["protocol"] == "strict" and r["components"] == "all" and r["ratio"]
        ]
        result.measures["parallelogram"] = (float(np.mean([r["ratio"] for r in rows])), np.mean(list(result.ratios.values()), axis=0))
    if cosines:
        result.measures["offset_cosine"] = (float(np.mean([c[0] for c in cosines])), np.mean([c[1] for c in cosines], axis=0))


def _from_text(loaded: LoadedModel, centers, text, tokens, layers, pairs, protocol, result: Interpretability) -> None:
    model = loaded.model
    block = min(256, getattr(model.config, "max_position_embeddings", 256))
    words = np.unique(np.concatenate([p.ids.ravel() for tasks in pairs.values() for p in tasks.values()]))
    rest = np.setdiff1d(np.arange(len(loaded.tokenizer)), words)
    reference = np.random.default_rng(SEED).choice(rest, min(len(rest), REFERENCE_TOKENS, tokens // 4), replace=False)
    alone = np.concatenate([words, reference])
    budget = max(block + 1, min(len(text), tokens - 2 * len(alone)))
    if len(text) <= block:
        raise InputError(f"the text has {len(text)} tokens, less than one block of {block}; give --data with more")
    states, labels = text_states(model, text[: budget + 1], block)
    result.row["text_tokens"], result.row["word_tokens"] = len(labels), 2 * len(alone)
    result.row["layers"] = [{"layer": i, "compression": compression(h)} for i, h in enumerate(states)]
    found = class_centers(head_input(model, states[-1]), labels, centers, SEED)
    result.row["class_centers"] = found.row
    if found.row["cosine"] is not None:
        result.measures["class_centers"] = (found.row["cosine"], weighted_means(found.cosines))
    # Words in the layers: the rows of a smaller matrix
    where = np.zeros(int(alone.max()) + 1, np.int64)
    where[alone] = np.arange(len(alone))
    moved = {p: {t: type(v)(where[v.ids], v.words, v.coverage) for t, v in tasks.items()} for p, tasks in pairs.items()}
    by_layer = word_states(model, alone, loaded.tokenizer.eos_token_id)
    for layer in layers:
        spread = spectrum(by_layer[layer][len(words) :])
        result.row["layers"][layer]["tasks"] = _tasks(by_layer[layer], spread, moved, protocol, None, spaces=(None,))
        result.row["layers"][layer]["mean_cosine_of_words"] = mean_cosine(by_layer[layer])


def geometry_rows(row: dict) -> list[dict]:
    """One flat dict a task, space and protocol: `pandas.DataFrame(geometry_rows(result.row))`."""
    places = {**{name: m["tasks"] for name, m in row["matrices"].items()}}
    places |= {f"layer {entry['layer']}": entry["tasks"] for entry in row.get("layers", []) if "tasks" in entry}
    return [{"where": where} | task for where, tasks in places.items() for task in tasks]
