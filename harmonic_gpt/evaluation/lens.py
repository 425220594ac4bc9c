"""Distance lens: every layer and position of a prompt read as its nearest centers, the harmonic counterpart of the
logit lens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harmonic_gpt.errors import InputError, option
from harmonic_gpt.evaluation.activations import centers_of, final_norm, head_input, hidden_states, is_euclidean
from harmonic_gpt.evaluation.measures.geometry import nearest_rows
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.extras import require
from harmonic_gpt.runs.load import LoadedModel


@dataclass(frozen=True)
class Lens:
    """A prompt of T tokens, read in L + 1 layers; layer 0 is the embeddings."""

    tokens: list[str]  # T, the prompt
    nearest: np.ndarray  # (L + 1, T, k) token ids, best first
    scores: np.ndarray  # (L + 1, T, k): distances (Euclidean heads), else dot products
    words: list[list[list[str]]]  # the same as text
    by: str  # "distance" or "dot"


@torch.no_grad()
def lens(loaded: LoadedModel, prompt: str, top: int = 3) -> Lens:
    """The `top` nearest tokens of every layer and position of a prompt.

    By distance for Euclidean heads, by dot product for others. Raises InputError for an empty or too long prompt, a
    model without tokenizer, or one whose final norm is not known.
    """
    model, tokenizer = loaded.model, tokenizer_of(loaded)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    limit = getattr(model.config, "max_position_embeddings", None)
    if not ids.numel() or (limit and ids.shape[1] > limit):
        raise InputError(f"{option('prompt')}: expected 1 to {limit} tokens, got {ids.numel()}")
    norm, centers = final_norm(model), centers_of(model)
    by = "distance" if is_euclidean(model) else "dot"
    *inner, last = hidden_states(model, ids)
    # (L + 1, T, D); the last one is normed already
    states = torch.stack([head_input(model, h[0]) for h in (*map(norm, inner), last)])
    indices, scores = nearest_rows(centers, states.flatten(0, 1), min(top, len(centers)), by)
    shape = (*states.shape[:2], -1)
    nearest = indices.view(shape).cpu().numpy()
    words = [[[str(tokenizer.decode([t])) for t in cell] for cell in row] for row in nearest.tolist()]
    tokens = [str(tokenizer.decode([t])) for t in ids[0].tolist()]
    return Lens(tokens, nearest, scores.view(shape).float().cpu().numpy(), words, by)


def draw(read: Lens, path: str | Path, title: str) -> None:
    """Heat map: a column a position, a row a layer (the last on top), each cell its nearest token."""
    require("eval", "matplotlib")
    from matplotlib.figure import Figure  # no window and no backend of pyplot's: this is called from notebooks too

    layers, width = read.nearest.shape[:2]
    figure = Figure(figsize=(max(4, 0.9 * width + 2), 0.45 * layers + 1.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        read.scores[..., 0], origin="lower", aspect="auto", cmap="viridis_r" if read.by == "distance" else "viridis"
    )
    for layer in range(layers):
        for position in range(width):
            red, green, blue, _ = image.cmap(image.norm(read.scores[layer, position, 0]))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            word = _shown(read.words[layer][position][0])
            axes.text(position, layer, word, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(width), [_shown(t) for t in read.tokens], rotation=45, ha="right", fontsize=8)
    axes.set(ylabel="layer (0: embeddings)", title=title)
    axes.set_yticks(range(layers))
    figure.colorbar(image, label="distance to the nearest center" if read.by == "distance" else "largest dot product")
    figure.savefig(path, dpi=150)


def _shown(word: str, most: int = 10) -> str:
    """A token as a label: control characters and leading spaces to be seen, cut where it would leave its cell, no
    mathematics."""
    text = repr(word)[1:-1]
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = "␣" + text[1:] if text.startswith(" ") else text
    return text.replace("$", r"\$")
