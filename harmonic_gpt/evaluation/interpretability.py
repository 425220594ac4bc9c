"""How interpretable one model is: a dict for results.json, the replicates that compare models, what figures draw."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import (
    centers_of,
    embedding_of,
    final_residual,
    head_input,
    mean_states,
    text_states,
)
from harmonic_gpt.evaluation.measures.analogies import analogy_ranks, analogy_row
from harmonic_gpt.evaluation.measures.bootstrap import bootstrap_means
from harmonic_gpt.evaluation.measures.class_centers import class_centers
from harmonic_gpt.evaluation.measures.geometry import (
    WITHOUT_FIRST,
    Spectrum,
    compression,
    mean_cosine,
    spectrum,
)
from harmonic_gpt.evaluation.measures.label_distance import label_distance
from harmonic_gpt.evaluation.measures.lens_agreement import POSITIONS as POSITIONS_READ
from harmonic_gpt.evaluation.measures.lens_agreement import lens_agreement
from harmonic_gpt.evaluation.measures.neighbors import neighbors
from harmonic_gpt.evaluation.measures.parallelogram import MIN_PAIRS, ParallelogramTest, paper_test, strict_test
from harmonic_gpt.evaluation.measures.probes import run_probes
from harmonic_gpt.evaluation.measures.rare_tokens import rare_tokens
from harmonic_gpt.evaluation.measures.similarity import POSITIONS
from harmonic_gpt.evaluation.tasks.probe_tasks import ProbeTask
from harmonic_gpt.evaluation.tasks.word_pairs import Pairs, TokenPairs, token_pairs
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.extras import require
from harmonic_gpt.progress import show_progress
from harmonic_gpt.runs.load import LoadedModel

SPACES = (2, 10, WITHOUT_FIRST, None)  # principal components; None: all of space
REFERENCE_TOKENS = 2000  # stand for the vocabulary where running all of it costs too much: in the layers
SEED = 0
PairsByProtocol = dict[str, dict[str, TokenPairs]]  # {"paper", "strict"} -> task -> pairs


@dataclass
class Interpretability:
    """What was measured of one model. `row` goes to results.json; the rest draws figures and compares models."""

    row: dict
    losses: dict[str, np.ndarray] = field(default_factory=dict)  # task -> over their control, without first component
    # Of the centers without the first component: task -> (ratio, replicates)
    ratios: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)
    measures: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)  # headline -> (value, replicates)
    # Of each layer, states (N, D) at `positions` (N,) of the text, to compare with another model
    sample: list[Tensor] = field(default_factory=list)
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def measure_interpretability(
    loaded: LoadedModel,
    tasks: dict[str, Pairs],
    text: np.ndarray | None = None,
    tokens: int = 32768,
    layers: list[int] | None = None,
    protocol: str = "both",
    probe_tasks: list[ProbeTask] | None = None,
    words: list[str] | None = None,
    counts: np.ndarray | None = None,
) -> Interpretability:
    """Geometry of a model's centers and, within a budget of forward tokens, of its layers.

    Args:
        text: (N,) held-out token ids; None (or tokens 0): the matrices only, no forward pass.
        tokens: to run through the model in all.
        layers: for word pairs and probes in the layers; default first, middle, last.
        protocol: of word pairs: "paper", "strict" or "both".
        probe_tasks: their tokens count in the budget. words: to list the neighbors of; default: a few common ones.
        counts: (V,) occurrences of each token in the training text; None: rare tokens are not measured.
    Raises InputError for a model without tokenizer, a layer or a word that it does not have, or without the extra
        `eval` where there is text.
    """
    layers = chosen_layers(loaded, layers)
    forward = text is not None and tokens > 0
    if forward:
        require("eval", "scipy", *(["sklearn"] if probe_tasks else []))
    weights, embedding = centers_of(loaded.model), embedding_of(loaded.model)
    tied = weights is embedding
    matrices = {"centers": weights.detach().cpu().float()}
    if not tied:
        matrices["embedding"] = embedding.detach().cpu().float()
    tokenizer = tokenizer_of(loaded)
    pairs = {p: {t: token_pairs(v, tokenizer, p) for t, v in tasks.items()} for p in ("paper", "strict")}
    nearest = neighbors(loaded, words)
    measured = Interpretability({"seed": SEED, "tied": tied, "matrices": {}, "flags": [], "neighbors": nearest})
    for name, matrix in matrices.items():
        principal = spectrum(matrix)
        shape = compression(matrix, principal)
        if shape["collapsed"]:
            measured.row["flags"].append(f"{name}: collapsed, all rows are alike")
        elif shape["effective_rank"] < 3:
            measured.row["flags"].append(f"{name}: nearly one line, effective rank {shape['effective_rank']:.2f}")
        tests = parallelograms(matrix, principal, pairs, protocol, SPACES)
        measured.row["matrices"][name] = {"compression": shape, "tasks": _rows(tests)}
        if name == "centers":
            _add_parallelograms(tests, measured)
    _add_analogies(matrices["centers"], pairs["strict"], measured)
    if text is not None and forward:
        spent = _add_words_in_layers(loaded, layers, pairs, protocol, tokens, measured)
        if probe_tasks:
            spent += _add_probes(loaded, layers, probe_tasks, measured)
        _add_text(loaded, matrices["centers"], text, tokens - spent, counts, measured)
    return measured


def chosen_layers(loaded: LoadedModel, layers: list[int] | None) -> list[int]:
    """`layers`, or the first, the middle and the last. Raises InputError for one that is not there."""
    depth = loaded.model.config.num_hidden_layers
    if layers is None:
        return sorted({0, depth // 2, depth})
    if missing := [layer for layer in layers if not 0 <= layer <= depth]:
        raise InputError(f"--layers: {missing} asked for, {loaded.name} has 0 (embeddings) to {depth}")
    return layers


def parallelograms(
    matrix: Tensor, principal: Spectrum, pairs: PairsByProtocol, protocol: str, spaces: tuple
) -> list[tuple[str, ParallelogramTest]]:
    """(task, test) in each space and protocol. matrix: (V, D), which the ids of `pairs` index."""
    tests = []
    for task in show_progress(pairs["strict"], desc="word pairs"):
        if protocol in ("paper", "both"):
            tests.append((task, paper_test(matrix, principal, pairs["paper"][task], SEED)))
        if protocol in ("strict", "both"):
            strict = pairs["strict"][task]
            tests += [(task, strict_test(matrix, principal, strict, components, SEED)) for components in spaces]
    return tests


def _rows(tests: list[tuple[str, ParallelogramTest]]) -> list[dict]:
    return [{"task": task} | test.row for task, test in tests]


def _add_parallelograms(tests: list[tuple[str, ParallelogramTest]], measured: Interpretability) -> None:
    """Distributions and headlines of the centers: means over tasks, each task alike.

    Tasks of as many pairs are resampled alike (`resample_weights`): the n-th pair of one is drawn as often as the n-th
    of the other. Where those pairs have nothing to do with each other, their replicates are uncorrelated all the same.
    """
    cosines: list[tuple[float, np.ndarray]] = []
    for task, test in tests:
        if test.row["components"] == WITHOUT_FIRST and len(test.ratios):
            measured.losses[task] = test.losses / test.row["control"]
            measured.ratios[task] = (test.row["ratio"], test.ratios)
            if len(test.cosines):
                cosines.append((test.row["offset_cosine"], test.cosines))
    for name, tasks in (("parallelogram", list(measured.ratios.values())), ("offset_cosine", cosines)):
        if tasks:
            values, replicates = zip(*tasks, strict=True)
            measured.measures[name] = (float(np.mean(values)), np.mean(replicates, axis=0))


def _add_analogies(centers: Tensor, pairs: dict[str, TokenPairs], measured: Interpretability) -> None:
    asked = {task: held.ids for task, held in pairs.items() if len(held.ids) >= MIN_PAIRS}
    ranks = analogy_ranks(centers, asked, SEED)
    measured.row["analogies"] = [{"task": task} | analogy_row(places) for task, places in ranks.items()]
    if ranks and len(hits := np.concatenate([places["distance"] < 5 for places in ranks.values()])):
        measured.measures["analogies"] = (float(hits.mean()), bootstrap_means(hits))


def _add_words_in_layers(
    loaded: LoadedModel,
    layers: list[int],
    pairs: PairsByProtocol,
    protocol: str,
    tokens: int,
    measured: Interpretability,
) -> int:
    """Parallelograms of the words' hidden states, each word alone: rows of a smaller matrix. Returns the forward tokens
    spent."""
    tokenizer = tokenizer_of(loaded)
    words = np.unique(np.concatenate([p.ids.ravel() for tasks in pairs.values() for p in tasks.values()]))
    rest = np.setdiff1d(np.arange(len(tokenizer)), words)
    reference = np.random.default_rng(SEED).choice(rest, min(len(rest), REFERENCE_TOKENS, tokens // 8), replace=False)
    alone = np.concatenate([words, reference])
    where = np.zeros(int(alone.max()) + 1, np.int64)
    where[alone] = np.arange(len(alone))
    moved = {
        p: {t: TokenPairs(where[v.ids], v.words, v.coverage) for t, v in tasks.items()} for p, tasks in pairs.items()
    }
    states = mean_states(loaded.model, [[token] for token in alone.tolist()], tokenizer.eos_token_id, batch=512)
    measured.row["layers"] = [{"layer": layer} for layer in range(len(states))]
    for layer in layers:
        tests = parallelograms(states[layer], spectrum(states[layer][len(words) :]), moved, protocol, (None,))
        measured.row["layers"][layer] |= {"tasks": _rows(tests), "mean_cosine_of_words": mean_cosine(states[layer])}
    measured.row["word_tokens"] = 2 * len(alone)
    return 2 * len(alone)


def _add_probes(
    loaded: LoadedModel, layers: list[int], probe_tasks: list[ProbeTask], measured: Interpretability
) -> int:
    """Probes of the layers, and their mean as a headline. Returns the forward tokens spent."""
    measured.row["probes"] = run_probes(loaded, probe_tasks, layers, SEED)
    measured.row["probe_tokens"] = sum(len(example) + 1 for task in probe_tasks for example in task.examples)
    if scores := [row["logistic"]["f1"] for row in measured.row["probes"] if row["flag"] is None]:
        measured.measures["probes"] = (float(np.mean(scores)), np.empty(0))
    return measured.row["probe_tokens"]


def _add_text(
    loaded: LoadedModel,
    centers: Tensor,
    text: np.ndarray,
    budget: int,
    counts: np.ndarray | None,
    measured: Interpretability,
) -> None:
    """Compression of every layer, class centers, label distance, rare tokens and lens agreement, on real text."""
    block = min(256, getattr(loaded.model.config, "max_position_embeddings", 256))
    if len(text) <= block:
        raise InputError(f"the text has {len(text)} tokens, less than one block of {block}; give --data with more")
    alone = min(POSITIONS_READ, max(budget, 0) // 4)  # tokens that the lens runs once more, without context
    read = text[: max(budget - alone, block) + 1]
    with final_residual(loaded.model) as taken:
        states, labels = text_states(loaded.model, read, block)
    measured.row["text_tokens"] = len(labels)
    for layer, h in zip(measured.row["layers"], states, strict=True):
        layer["compression"] = compression(h)
    before_head = head_input(loaded.model, states[-1])
    compared = class_centers(before_head, labels, centers, SEED)
    measured.row["class_centers"] = compared.row
    if compared.row["cosine"] is not None:
        measured.measures["class_centers"] = (compared.row["cosine"], bootstrap_means(compared.cosines))
        measured.measures["own_center"] = (compared.row["own_center"], bootstrap_means(compared.reciprocal_ranks))
    near = label_distance(before_head, labels, centers, SEED)
    measured.row["label_distance"] = near.row
    if near.headline is not None:
        measured.measures["label_distance"] = near.headline
    if counts is not None:
        rare = rare_tokens(loaded.model, states[-1], labels, counts, SEED)
        measured.row["rare_tokens"] = rare.row
        if rare.headline is not None:
            measured.measures["rare_tokens"] = rare.headline
    if taken:
        inputs = torch.from_numpy(read[: len(labels)].astype(np.int64))
        agreed = lens_agreement(loaded.model, states, torch.cat(taken).float(), inputs, block, SEED, max(alone, block))
        measured.row["lens"] = agreed.row
        measured.measures |= agreed.headlines
    else:
        measured.row["lens"] = {"flag": "no final norm under a known name"}
    measured.positions = np.sort(np.random.default_rng(SEED).permutation(len(labels))[:POSITIONS])
    measured.sample = [h[torch.from_numpy(measured.positions)] for h in states]


def geometry_rows(row: dict) -> list[dict]:
    """One flat dict a task, space and protocol: `pandas.DataFrame(geometry_rows(measured.row))`."""
    places = {name: m["tasks"] for name, m in row["matrices"].items()}
    places |= {f"layer {entry['layer']}": entry["tasks"] for entry in row.get("layers", []) if "tasks" in entry}
    return [{"where": where} | task for where, tasks in places.items() for task in tasks]
