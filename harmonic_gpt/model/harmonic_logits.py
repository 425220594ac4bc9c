"""What a head is: its logits, in one definition. Everything else (loss, kernels, generation) is tested against it.

Symbols of the shape comments: N tokens, D hidden size, V classes.

    harmonic (euclidean + harmax):  z_j = -n log ||x - w_j||,  p = softmax(z),  loss = -log p_y

Baek et al., "Harmonic Loss Trains Interpretable AI Models", arXiv 2502.01628, section 2. n acts on the distance, not
its square.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Distances are formed as ||x||^2 + ||w||^2 - 2 x.w in float32, whose rounding error is about this share of ||x||^2 +
# ||w||^2. Below it a distance is noise; it is raised to the floor, and its gradient is zero.
RELATIVE_FLOOR = 4e-6
# The smallest floor: both norms may be zero
TINY = torch.finfo(torch.float32).tiny


SIMILARITIES = ("euclidean", "dot")
NORMALIZATIONS = ("harmax", "softmax")


class HeadSpec(NamedTuple):
    """Which of the four heads: the two choices of the paper's ablation (section 6) and the exponent."""

    exponent: float
    similarity: str = "euclidean"
    normalization: str = "harmax"

    def check(self) -> "HeadSpec":
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity: expected one of {SIMILARITIES}, got {self.similarity!r}")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization: expected one of {NORMALIZATIONS}, got {self.normalization!r}")
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise ValueError(f"exponent: expected a positive number, got {self.exponent!r}")
        return self

    @property
    def name(self) -> str:
        """harmonic, standard, or the two choices of an ablation."""
        names = {("euclidean", "harmax"): "harmonic", ("dot", "softmax"): "standard"}
        return names.get((self.similarity, self.normalization), f"{self.similarity} + {self.normalization}")


def operand_dtype(hidden_states: Tensor, centers: Tensor) -> torch.dtype:
    """The dtype that both operands are rounded to: autocast's where it is on, otherwise the wider of the two.

    Everything after this rounding (norms, products, distances) uses the same values, so that it moves points and does
    not break
    ||x||^2 + ||w||^2 - 2 x.w = ||x - w||^2.
    """
    dtype = torch.promote_types(hidden_states.dtype, centers.dtype)
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # autocast leaves float64 alone
        dtype = torch.get_autocast_dtype(device)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(
            f"the harmonic head computes in float32, float64 or bfloat16, got {dtype}: its gradients are formed in the forward "
            "pass, where float16 loss scaling cannot reach them. Use bfloat16 (mixed_precision=bf16)."
        )
    return dtype


def no_autocast(tensor: Tensor):
    return torch.autocast(tensor.device.type, enabled=False)


def widened(tensor: Tensor) -> Tensor:
    """At least float32: the dtype in which distances and losses are formed."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def squared_norms(rows: Tensor) -> Tensor:
    """||row||^2 over the last dimension. vector_norm makes no temporary of the size of `rows`, which costs more than
    the sum."""
    return torch.linalg.vector_norm(rows, dim=-1).square()


def head_logits(
    hidden_states: Tensor,
    centers: Tensor,
    *,
    exponent: float,
    similarity: str = "euclidean",
    normalization: str = "harmax",
) -> Tensor:
    """Unnormalised logits z, of which softmax(z) are the class probabilities. Differentiable; builds all of (N, V).

    Args:
        hidden_states: (..., N, D), already multiplied by hidden_scale.
        centers: (V, D), or (..., V, D) with the same leading dimensions (one head per batch entry).
        exponent: harmonic exponent n on the distance; ignored by softmax.
        similarity, normalization: "euclidean" | "dot" and "harmax" | "softmax".

    Returns:
        (..., N, V) in float32 (float64 for float64 inputs):
        euclidean + harmax  -(n/2) log d^2      euclidean + softmax  -d
        dot + harmax        n log |s|           dot + softmax        s
        with d^2 and |s| floored where float32 cannot resolve them (zero gradient there).
    """
    HeadSpec(exponent, similarity, normalization).check()
    dtype = operand_dtype(hidden_states, centers)
    with no_autocast(hidden_states):
        x, w = widened(hidden_states.to(dtype)), widened(centers.to(dtype))
        s = x @ w.mT  # (..., N, V)
        if similarity == "dot" and normalization == "softmax":
            return s
        x2 = squared_norms(x).unsqueeze(-1)  # (..., N, 1)
        w2 = squared_norms(w).unsqueeze(-2)  # (..., 1, V)
        if similarity == "dot":
            return exponent * torch.log(_floored(s.abs(), (x2 * w2).sqrt()))
        d2 = _floored(x2 + w2 - 2 * s, x2 + w2)
        return -(exponent / 2) * torch.log(d2) if normalization == "harmax" else -d2.sqrt()


def _floored(value: Tensor, scale: Tensor) -> Tensor:
    floor = (RELATIVE_FLOOR * scale + TINY).detach()
    return torch.where(value > floor, value, floor)
