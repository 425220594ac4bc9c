"""Distance lens: every layer and position of a prompt read by the model's own head, which for a harmonic model are its
nearest centers: the counterpart of the logit lens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harmonic_gpt.errors import InputError, option
from harmonic_gpt.evaluation.activations import final_norm, head_input, hidden_states, score_name, scores
from harmonic_gpt.evaluation.measures.lens_agreement import log_probabilities
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.extras import require
from harmonic_gpt.runs.load import LoadedModel


@dataclass(frozen=True)
class Lens:
    """A prompt of T tokens, read in L + 1 layers; layer 0 is the embeddings."""

    tokens: list[str]  # T, the prompt
    nearest: np.ndarray  # (L + 1, T, k) token ids, likeliest first
    scores: np.ndarray  # (L + 1, T, k): what the head compares them by
    words: list[list[list[str]]]  # the same as text
    by: str  # name of the scores, see `activations.score_name`


@torch.no_grad()
def lens(loaded: LoadedModel, prompt: str, top: int = 3) -> Lens:
    """The `top` likeliest tokens of every layer and position of a prompt, by the model's own head.

    That is by distance or dot product, and by whatever else the head has: another metric, a prior. Raises InputError
    for an empty or too long prompt, a model without tokenizer, or one whose final norm is not known.
    """
    model, tokenizer = loaded.model, tokenizer_of(loaded)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    limit = getattr(model.config, "max_position_embeddings", None)
    if not ids.numel() or (limit and ids.shape[1] > limit):
        raise InputError(f"{option('prompt')}: expected 1 to {limit} tokens, got {ids.numel()}")
    norm = final_norm(model)
    *inner, last = hidden_states(model, ids)
    read: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for h in (*map(norm, inner), last):  # the last one is normed already
        log_p = log_probabilities(model, h[0])  # (T, V)
        likeliest = log_p.topk(min(top, log_p.shape[1]), dim=1).indices
        read.append(likeliest.cpu().numpy())
        values.append(scores(model, head_input(model, h[0]), likeliest, log_p).float().cpu().numpy())
    nearest = np.stack(read)
    words = [[[str(tokenizer.decode([t])) for t in cell] for cell in row] for row in nearest.tolist()]
    tokens = [str(tokenizer.decode([t])) for t in ids[0].tolist()]
    return Lens(tokens, nearest, np.stack(values), words, score_name(model))


def draw(read: Lens, path: str | Path, title: str) -> None:
    """Heat map: a column a position, a row a layer (the last on top), each cell its likeliest token."""
    require("eval", "matplotlib")
    from matplotlib.figure import Figure  # no window and no backend of pyplot's: this is called from notebooks too

    layers, width = read.nearest.shape[:2]
    figure = Figure(figsize=(max(4, 0.9 * width + 2), 0.45 * layers + 1.6), layout="constrained")
    axes = figure.subplots()
    cmap = "viridis_r" if read.by.endswith("distance") else "viridis"
    image = axes.imshow(read.scores[..., 0], origin="lower", aspect="auto", cmap=cmap)
    for layer in range(layers):
        for position in range(width):
            red, green, blue, _ = image.cmap(image.norm(read.scores[layer, position, 0]))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            word = _shown(read.words[layer][position][0])
            axes.text(position, layer, word, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(width), [_shown(t) for t in read.tokens], rotation=45, ha="right", fontsize=8)
    axes.set(ylabel="layer (0: embeddings)", title=title)
    axes.set_yticks(range(layers))
    figure.colorbar(image, label=f"{read.by} of the likeliest token's center")
    figure.savefig(path, dpi=150)


def _shown(word: str, most: int = 10) -> str:
    """A token as a label: control characters and leading spaces to be seen, cut where it would leave its cell, no
    mathematics."""
    text = repr(word)[1:-1]
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = "␣" + text[1:] if text.startswith(" ") else text
    return text.replace("$", r"\$")
