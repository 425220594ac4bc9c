"""What a model makes of a text: its predictions at every position, and the state's way to them through the layers.

State t has read tokens 0 to t and predicts token t + 1. Symbols of the shape comments: T tokens, L layers that are
shown, k tokens listed, V vocabulary, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harmonic_gpt.evaluation.activations import head_input, scores
from harmonic_gpt.evaluation.lens import final_norm
from harmonic_gpt.explorer.centers import CenterMap

TOP = 10  # tokens listed of a prediction
LENS_TOP = 5  # of a cell of the lens
MAX_LAYERS = 9  # shown of the lens: the embeddings, the last, and as many between


@dataclass(frozen=True)
class Prediction:
    """The model's output at each of T states."""

    top: np.ndarray  # (T, k) int64, likeliest first
    top_p: np.ndarray  # (T, k) float32
    top_score: np.ndarray  # (T, k) float32, see `activations.score_name`
    nats: np.ndarray  # (T - 1,) float32: surprise of token t + 1
    label_score: np.ndarray  # (T - 1,) float32
    label_rank: np.ndarray  # (T - 1,) int32, 1: the likeliest


@dataclass(frozen=True)
class Walk:
    """The states after L layers, each put through the final norm and read by the head; the last layer is the output."""

    top: np.ndarray  # (L, T, k) int64, likeliest first
    top_score: np.ndarray  # (L, T, k) float32
    agreement: np.ndarray  # (L, T) float32: probability in common with the output, sum over tokens of min(p, q)
    label_p: np.ndarray  # (L, T - 1) float32
    label_score: np.ndarray  # (L, T - 1) float32
    label_rank: np.ndarray  # (L, T - 1) int32
    coordinates: dict[str, np.ndarray]  # projection -> (L, T, 2) float32, on the map of the centers


def shown_layers(model: PreTrainedModel) -> list[int]:
    """Layers of the lens and the walk: all, or MAX_LAYERS of them evenly spaced; 0: the embeddings. Raises InputError
    for a model whose final norm is not known."""
    final_norm(model)
    last = int(model.config.num_hidden_layers)
    return sorted({round(layer) for layer in np.linspace(0, last, min(last + 1, MAX_LAYERS))})


@torch.no_grad()
def read_text(
    model: PreTrainedModel, ids: np.ndarray, layers: list[int] | None, centers: CenterMap
) -> tuple[Prediction, Walk | None]:
    """What the model makes of a text of T tokens, 2 <= T <= its context.

    Args:
        layers: of the walk, see `shown_layers`; None: no walk.
    """
    tokens = torch.from_numpy(np.asarray(ids, np.int64)).to(model.device)
    output = model(input_ids=tokens[None], output_hidden_states=True, use_cache=False)
    logits = output.logits[0].float()
    last = head_input(model, output.hidden_states[-1][0])
    out = _read(model, logits, last, tokens, TOP)
    prediction = Prediction(
        top=_numpy(out.top),
        top_p=_numpy(out.log_p.gather(1, out.top).exp()),
        top_score=_numpy(out.top_score),
        nats=_numpy(-out.label_log_p),
        label_score=_numpy(out.label_score),
        label_rank=_numpy(out.label_rank),
    )
    if layers is None:
        return prediction, None
    norm, head = final_norm(model), model.get_output_embeddings()
    p = out.log_p.exp()
    parts: dict[str, list[np.ndarray]] = {}
    places: dict[str, list[np.ndarray]] = {}
    for layer in layers:
        if layer == len(output.hidden_states) - 1:
            read, state, agreement = out, last, torch.ones(len(tokens))
        else:
            normed = norm(output.hidden_states[layer][0])
            state = head_input(model, normed)
            read = _read(model, head(normed).float(), state, tokens, TOP)
            agreement = torch.minimum(read.log_p.exp(), p).sum(1)
        weights = read.log_p.gather(1, read.top).softmax(1)
        of_layer = {
            "top": read.top[:, :LENS_TOP],
            "top_score": read.top_score[:, :LENS_TOP],
            "agreement": agreement,
            "label_p": read.label_log_p.exp(),
            "label_score": read.label_score,
            "label_rank": read.label_rank,
        }
        for key, tensor in of_layer.items():
            parts.setdefault(key, []).append(_numpy(tensor))
        for key, place in centers.place(state, read.top, weights).items():
            places.setdefault(key, []).append(place)
    fields = {key: np.stack(arrays) for key, arrays in parts.items()}
    return prediction, Walk(**fields, coordinates={key: np.stack(arrays) for key, arrays in places.items()})


@dataclass(frozen=True)
class _Read:
    log_p: Tensor  # (T, V)
    top: Tensor
    top_score: Tensor
    label_log_p: Tensor
    label_score: Tensor
    label_rank: Tensor


def _read(model: PreTrainedModel, logits: Tensor, states: Tensor, tokens: Tensor, count: int) -> _Read:
    log_p = logits.log_softmax(-1)
    top = log_p.topk(min(count, log_p.shape[1]), dim=1).indices
    labels = tokens[1:, None]
    of_label = log_p[:-1].gather(1, labels)
    return _Read(
        log_p,
        top,
        scores(model, states, top, logits),
        of_label[:, 0],
        scores(model, states[:-1], labels, logits[:-1])[:, 0],
        (log_p[:-1] > of_label).sum(1).int() + 1,
    )


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
