"""Do a model's inner layers already say what its last layer says? The logit lens, with its control and a tuned lens.

A layer's hidden state goes through the final norm and the model's own head, whatever that is (nostalgebraist 2020). Two
reasons can make that reading differ from the model's answer: the layer does not know it yet, or it does not speak the
head's language. The tuned lens tells them apart: an affine map for each layer into the last layer's language, fitted on
other text (Belrose et al., arXiv 2303.08112). Here it is fitted in closed form, by least squares onto the residual
stream of the last layer (Din et al., arXiv 2303.09435): nothing to tune, so nothing to tune in favor of one head.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harmonic_gpt.evaluation.activations import final_norm, spec_of
from harmonic_gpt.evaluation.measures.bootstrap import percentile_interval, segment_ratio

POSITIONS = 2048  # of the text, at which layers are read
MIN_CONTEXT = 100  # positions whose answer depends on the context, for a headline
IDLE = 0.01  # a layer that differs from the last one by less than this share of its norm
RIDGE = 1e-4  # of the tuned lens, as a share of the states' mean variance
CHUNK = 2**24  # logits at a time


@dataclass(frozen=True)
class LensAgreement:
    row: dict
    # "lens_agreement", "tuned_lens" -> (value, bootstrap replicates), where there is one
    headlines: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)


@torch.no_grad()
def lens_agreement(
    model: PreTrainedModel,
    states: list[Tensor],
    residual: Tensor,
    ids: Tensor,
    block: int,
    seed: int = 0,
    positions: int = POSITIONS,
) -> LensAgreement:
    """Top-1 agreement and KL(final || layer) of every layer's reading with the model's output.

    The first half of the text fits the tuned lens, the second is read. Every layer has both measures at all positions.
    The headline is stricter, so that a model whose layers do nothing cannot win it: the mean over the inner layers of
    the agreement at positions whose answer depends on the context, that is, differs from the answer to the same
    token at the same place alone. Layer 0, the embeddings, has seen no context and does not count; nor does a layer
    that is the last one already, to within IDLE of its norm.

    Args:
        states: L + 1 tensors (N, D), the embeddings and the output of each block, the last one behind the final norm.
        residual: (N, D), the last layer in front of it. ids: (N,) input tokens, in blocks of `block`.
        positions: to read, at most.
    """
    norm, vocabulary = final_norm(model), model.get_output_embeddings().weight.shape[0]
    half = len(ids) // (2 * block) * block or len(ids) // 2
    end = min(len(ids), half + positions)
    inner, last = states[:-1], states[-1]
    wide = half >= 2 * last.shape[1]
    maps = [affine_map(h[:half], residual[:half]) if wide else None for h in inner]
    weight = next(norm.parameters())

    hits, kl = (np.zeros((2, len(inner), end - half)) for _ in range(2))  # raw and tuned lens, layers, positions
    away, answers = np.zeros((len(inner), end - half)), []
    rows = max(1, CHUNK // vocabulary)
    for start in range(half, end, rows):
        part = slice(start, min(end, start + rows))
        here = slice(part.start - half, part.stop - half)
        at_last = last[part].to(weight)
        final = log_probabilities(model, at_last)
        p = final.exp()
        answer = final.argmax(-1)
        answers.append(answer.cpu())
        for layer, (h, affine) in enumerate(zip(inner, maps, strict=True)):
            away[layer, here] = ((norm(h[part].to(weight)) - at_last).norm(dim=1) / at_last.norm(dim=1)).float().cpu()
            for lens, state in enumerate([h[part]] if affine is None else [h[part], h[part] @ affine[0] + affine[1]]):
                reading = log_probabilities(model, norm(state.to(weight)))
                hits[lens, layer, here] = (reading.argmax(-1) == answer).cpu()
                kl[lens, layer, here] = (p * (final - reading)).sum(-1).cpu()
    alone = answers_alone(model, ids[half:end], block)
    depends = (torch.cat(answers) != alone).numpy()
    return _summary(hits, kl, np.median(away, axis=1), depends, half if wide else 0, seed)


def log_probabilities(model: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """(..., V) float32 of normed hidden states (..., D), by the model's own head."""
    logits, spec = model.get_output_embeddings()(hidden_states).float(), spec_of(model)
    return logits if spec is not None and spec.name != "standard" else logits.log_softmax(-1)


def affine_map(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A (D, D) and b (D,) with h A + b nearest to target, rows (N, D) each, by least squares with a small ridge."""
    h, target = h.double(), target.double()
    centered = h - h.mean(0)
    gram = centered.T @ centered
    ridge = RIDGE * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
    a = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), centered.T @ (target - target.mean(0)))
    return a.float(), (target.mean(0) - h.mean(0) @ a).float()


@torch.no_grad()
def answers_alone(model: PreTrainedModel, ids: Tensor, block: int, batch: int = 2048) -> Tensor:
    """(N,) the model's answer to each token alone, at its place in its block: without context."""
    places = torch.arange(len(ids)) % block
    answers = []
    for token, place in zip(ids.split(batch), places.split(batch), strict=True):
        token, place = (x[:, None].to(model.device) for x in (token, place))
        last = model.base_model(input_ids=token, position_ids=place, use_cache=False).last_hidden_state[:, 0]
        rows = max(1, CHUNK // model.get_output_embeddings().weight.shape[0])
        answers += [model.get_output_embeddings()(part).argmax(-1).cpu() for part in last.split(rows)]
    return torch.cat(answers)


def _summary(
    hits: np.ndarray, kl: np.ndarray, away: np.ndarray, depends: np.ndarray, fitted_on: int, seed: int
) -> LensAgreement:
    """Values and intervals of what was read: hits and kl (2, L, N), away (L,), depends (N,)."""
    everywhere = np.ones_like(depends)
    lenses = ("", "tuned_") if fitted_on else ("",)
    layers: list[dict] = []
    context: dict[tuple[str, int], tuple[float, np.ndarray]] = {}
    for layer in range(len(away)):
        row: dict = {"layer": layer, "idle": bool(away[layer] < IDLE)}
        for lens, prefix in enumerate(lenses):
            kept = {
                "agreement": segment_ratio(hits[lens, layer], everywhere, seed),
                "kl": segment_ratio(kl[lens, layer], everywhere, seed),
            }
            if depends.any():
                kept["context_agreement"] = segment_ratio(hits[lens, layer] * depends, depends, seed)
                context[prefix, layer] = kept["context_agreement"]
            for key, (value, replicates) in kept.items():
                row |= {prefix + key: value, f"{prefix}{key}_interval": percentile_interval(replicates)}
        layers.append(row)
    positions = {"positions": len(depends), "context_positions": int(depends.sum())}
    row = positions | {"fitted_on": fitted_on, "layers": layers}
    counted = [one["layer"] for one in layers if one["layer"] > 0 and not one["idle"]]
    if depends.sum() < MIN_CONTEXT:
        return LensAgreement(row | {"flag": "hardly any answer depends on the context"})
    if not counted:
        return LensAgreement(row | {"flag": "no inner layer that differs from the last one"})
    headlines = {}
    for prefix, name in zip(lenses, ("lens_agreement", "tuned_lens"), strict=False):
        values, replicates = zip(*(context[prefix, layer] for layer in counted), strict=True)
        headlines[name] = (float(np.mean(values)), np.mean(replicates, axis=0))
        row |= {name: headlines[name][0], f"{name}_interval": percentile_interval(headlines[name][1])}
    return LensAgreement(row | {"counted_layers": counted, "flag": None}, headlines)
