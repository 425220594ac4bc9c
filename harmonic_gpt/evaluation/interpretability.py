"""How readable one model is: a dict for results.json, the replicates that compare models, the curves that are drawn."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.activations import head_input, mean_states, text_states
from harmonic_gpt.evaluation.measures.analogies import analogy_ranks, analogy_row
from harmonic_gpt.evaluation.measures.bootstrap import bootstrap_means
from harmonic_gpt.evaluation.measures.class_centers import class_centers
from harmonic_gpt.evaluation.measures.geometry import (
    WITHOUT_FIRST,
    Spectrum,
    compression,
    cumulative_explained_variance,
    mean_cosine,
    spectrum,
)
from harmonic_gpt.evaluation.measures.neighbors import neighbours
from harmonic_gpt.evaluation.measures.parallelogram import MIN_PAIRS, ParallelogramTest, paper_test, strict_test
from harmonic_gpt.evaluation.measures.probes import run_probes
from harmonic_gpt.evaluation.measures.similarity import POSITIONS
from harmonic_gpt.evaluation.tasks.probe_tasks import ProbeTask
from harmonic_gpt.evaluation.tasks.word_pairs import Pairs, TokenPairs, token_pairs
from harmonic_gpt.runs.load import LoadedModel

SPACES = (2, 10, WITHOUT_FIRST, None)  # principal components; None: all of space
REFERENCE_TOKENS = 2000  # stand for the vocabulary where running all of it costs too much: in the layers
SEED = 0


@dataclass
class Interpretability:
    row: dict
    losses: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # task -> losses over their control (strict, without the first component)
    paper_losses: dict[str, np.ndarray] = field(default_factory=dict)
    middle_losses: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # the paper's, in the middle layer (its appendix C)
    ratios: dict[str, np.ndarray] = field(default_factory=dict)  # task -> bootstrap replicates
    measures: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)  # headline -> (value, replicates)
    curve: np.ndarray | None = None
    sample: list[Tensor] = field(
        default_factory=list
    )  # of each layer: states at `positions` of the text, to compare with another model
    positions: np.ndarray | None = None


def measure_interpretability(
    loaded: LoadedModel,
    tasks: dict[str, Pairs],
    text: np.ndarray | None = None,
    tokens: int = 32768,
    layers: list[int] | None = None,
    protocol: str = "both",
    probe_tasks: list[ProbeTask] | None = None,
    words: list[str] | None = None,
) -> Interpretability:
    """Geometry of a model's centers and, within a budget of forward tokens, of its layers.

    Args:
        text: held-out token ids; None (or tokens 0): the matrices only, no forward pass.
        layers: for word pairs and probes in the layers; default first, middle, last. protocol: "paper", "strict" or
        "both".
        probe_tasks: their tokens count in the budget. words: to list the neighbours of; default: a few common ones.
    Raises InputError for a model without tokenizer, a layer or a word that it does not have.
    """
    model = loaded.model
    layers = chosen_layers(loaded, layers)
    assert loaded.tokenizer is not None  # it has looked
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{loaded.path} has no output embedding: nothing to measure")
    centers, inputs = head.weight.detach().cpu().float(), model.get_input_embeddings().weight.detach().cpu().float()  # type: ignore[operator]
    tied = head.weight is model.get_input_embeddings().weight
    pairs = {p: {t: token_pairs(v, loaded.tokenizer, p) for t, v in tasks.items()} for p in ("paper", "strict")}
    result = Interpretability(
        {"seed": SEED, "tied": tied, "matrices": {}, "flags": [], "neighbours": neighbours(loaded, words)}
    )

    for name, matrix in ({"centers": centers} | ({} if tied else {"embedding": inputs})).items():
        found = spectrum(matrix)
        shape = compression(matrix, found)
        if shape["collapsed"]:
            result.row["flags"].append(f"{name}: collapsed, all rows are alike")
        elif shape["effective_rank"] < 3:
            result.row["flags"].append(f"{name}: nearly one line, effective rank {shape['effective_rank']:.2f}")
        tests = parallelograms(matrix, found, pairs, protocol, SPACES)
        result.row["matrices"][name] = {"compression": shape, "tasks": _rows(tests)}
        if name == "centers":
            _keep(tests, result)
            result.curve = cumulative_explained_variance(found)
    _analogies(centers, pairs["strict"], result)
    if text is not None and tokens > 0:
        used = _words_in_layers(loaded, layers, pairs, protocol, tokens, result)
        if probe_tasks:
            result.row["probes"] = run_probes(loaded, probe_tasks, layers, SEED)
            result.row["probe_tokens"] = sum(len(example) + 1 for task in probe_tasks for example in task.examples)
            used += result.row["probe_tokens"]
            if scores := [row["logistic"]["f1"] for row in result.row["probes"] if row["flag"] is None]:
                result.measures["probes"] = (float(np.mean(scores)), np.empty(0))
        _text(loaded, centers, text, tokens - used, result)
    return result


def chosen_layers(loaded: LoadedModel, layers: list[int] | None) -> list[int]:
    """`layers`, or the first, the middle and the last. Raises InputError for one that is not there, or a model without
    tokenizer."""
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.path} has no tokenizer: its tokens cannot be matched with words; copy one into that folder"
        )
    depth = loaded.model.config.num_hidden_layers
    if layers is None:
        return sorted({0, depth // 2, depth})
    if bad := [layer for layer in layers if not 0 <= layer <= depth]:
        raise InputError(f"--layers: {bad} asked for, {loaded.name} has 0 (embeddings) to {depth}")
    return layers


def parallelograms(
    matrix: Tensor, found: Spectrum, pairs: dict, protocol: str, spaces: tuple
) -> list[tuple[str, ParallelogramTest]]:
    """(task, test) in each space and protocol. pairs: {protocol: {task: TokenPairs}}."""
    tests = []
    for task in tqdm(pairs["strict"], desc="word pairs", disable=None, leave=False):
        if protocol in ("paper", "both"):
            tests.append((task, paper_test(matrix, found, pairs["paper"][task], SEED)))
        for components in spaces if protocol in ("strict", "both") else ():
            tests.append((task, strict_test(matrix, found, pairs["strict"][task], components, SEED)))
    return tests


def _rows(tests: list[tuple[str, ParallelogramTest]]) -> list[dict]:
    return [{"task": task} | test.row for task, test in tests]


def _keep(tests: list[tuple[str, ParallelogramTest]], result: Interpretability) -> None:
    """Distributions and headlines of the centers: means over tasks, each task alike; a task's replicates were drawn
    independently."""
    values, cosines = [], []
    for task, test in tests:
        if test.row["protocol"] == "paper":
            result.paper_losses[task] = test.losses
        elif test.row["components"] == WITHOUT_FIRST and len(test.ratios):
            result.losses[task], result.ratios[task] = test.losses / test.row["control"], test.ratios
            values.append(test.row["ratio"])
            if len(test.cosines):
                cosines.append((test.row["offset_cosine"], test.cosines))
    if values:
        result.measures["parallelogram"] = (float(np.mean(values)), np.mean(list(result.ratios.values()), axis=0))
    if cosines:
        result.measures["offset_cosine"] = (
            float(np.mean([c for c, _ in cosines])),
            np.mean([r for _, r in cosines], axis=0),
        )


def _analogies(centers: Tensor, pairs: dict[str, TokenPairs], result: Interpretability) -> None:
    asked = {task: found.ids for task, found in pairs.items() if len(found.ids) >= MIN_PAIRS}
    ranks = analogy_ranks(centers, asked, SEED)
    result.row["analogies"] = [{"task": task} | analogy_row(found) for task, found in ranks.items()]
    if ranks and len(hits := np.concatenate([found["distance"] < 5 for found in ranks.values()])):
        result.measures["analogies"] = (float(hits.mean()), bootstrap_means(hits))


def _words_in_layers(
    loaded: LoadedModel, layers: list[int], pairs: dict, protocol: str, tokens: int, result: Interpretability
) -> int:
    """Parallelograms of the words' hidden states, each word alone: rows of a smaller matrix. Returns the forward tokens
    spent."""
    words = np.unique(np.concatenate([p.ids.ravel() for tasks in pairs.values() for p in tasks.values()]))
    assert loaded.tokenizer is not None  # measure_interpretability has looked
    rest = np.setdiff1d(np.arange(len(loaded.tokenizer)), words)
    reference = np.random.default_rng(SEED).choice(rest, min(len(rest), REFERENCE_TOKENS, tokens // 8), replace=False)
    alone = np.concatenate([words, reference])
    where = np.zeros(int(alone.max()) + 1, np.int64)
    where[alone] = np.arange(len(alone))
    moved = {
        p: {t: TokenPairs(where[v.ids], v.words, v.coverage) for t, v in tasks.items()} for p, tasks in pairs.items()
    }
    states = mean_states(loaded.model, [[token] for token in alone.tolist()], loaded.tokenizer.eos_token_id, batch=512)
    result.row["layers"] = [{"layer": layer} for layer in range(len(states))]
    for layer in layers:
        tests = parallelograms(states[layer], spectrum(states[layer][len(words) :]), moved, protocol, (None,))
        result.row["layers"][layer] |= {"tasks": _rows(tests), "mean_cosine_of_words": mean_cosine(states[layer])}
        if layer == (len(states) - 1) // 2:
            result.middle_losses = {task: test.losses for task, test in tests if test.row["protocol"] == "paper"}
    result.row["word_tokens"] = 2 * len(alone)
    return 2 * len(alone)


def _text(loaded: LoadedModel, centers: Tensor, text: np.ndarray, budget: int, result: Interpretability) -> None:
    """Compression of every layer and class centers, on real text."""
    block = min(256, getattr(loaded.model.config, "max_position_embeddings", 256))
    if len(text) <= block:
        raise InputError(f"the text has {len(text)} tokens, less than one block of {block}; give --data with more")
    states, labels = text_states(loaded.model, text[: max(budget, block) + 1], block)
    result.row["text_tokens"] = len(labels)
    for layer, h in zip(result.row["layers"], states, strict=True):
        layer["compression"] = compression(h)
    found = class_centers(head_input(loaded.model, states[-1]), labels, centers, SEED)
    result.row["class_centers"] = found.row
    if found.row["cosine"] is not None:
        result.measures["class_centers"] = (found.row["cosine"], bootstrap_means(found.cosines))
    result.positions = np.sort(np.random.default_rng(SEED).permutation(len(labels))[:POSITIONS])
    result.sample = [h[torch.from_numpy(result.positions)] for h in states]


def geometry_rows(row: dict) -> list[dict]:
    """One flat dict a task, space and protocol: `pandas.DataFrame(geometry_rows(result.row))`."""
    places = {name: m["tasks"] for name, m in row["matrices"].items()}
    places |= {f"layer {entry['layer']}": entry["tasks"] for entry in row.get("layers", []) if "tasks" in entry}
    return [{"where": where} | task for where, tasks in places.items() for task in tasks]
