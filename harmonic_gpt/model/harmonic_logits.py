"""What a head is: its logits, in one definition. Everything else (loss, kernels, generation) is tested against it.

Symbols of the shape comments: N tokens, D hidden size, V classes.

    harmonic (euclidean + harmax):  z_j = -n log ||x - w_j||,  p = softmax(z),  loss = -log p_y

Baek et al., "Harmonic Loss Trains Interpretable AI Models", arXiv 2502.01628, section 2. n acts on the distance, not
its square.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

# Distances are formed as ||x||^2 + ||w||^2 - 2 x.w in float32, whose rounding error is about this share of ||x||^2 +
# ||w||^2. Below it a distance is noise; it is raised to the floor, and its gradient is zero.
RELATIVE_FLOOR = 4e-6
# The smallest floor: both norms may be zero
TINY = torch.finfo(torch.float32).tiny
# Inference on the CPU reads the centers once: in blocks that stay in its cache from the product to the norms. For up to
# so many rows of hidden states; with more, the product takes the time, not the reading.
INFERENCE_BLOCK_BYTES = 2**20
FEW_ROWS = 16


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
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"the head takes float32, float64, bfloat16 or float16, got {dtype}")
    return dtype


def refuse_dtensors(*tensors: Tensor) -> None:
    """Shards are not the whole matrix: raises ValueError for a DTensor (FSDP2, tensor parallelism)."""
    module = sys.modules.get("torch.distributed.tensor")  # not loaded: there are none
    if module is not None and any(isinstance(tensor, module.DTensor) for tensor in tensors):
        raise ValueError(
            "expected plain tensors, got a DTensor, of which each rank holds a shard. Call the loss inside the head's "
            "forward, model.lm_head(hidden_states, labels): FSDP has gathered the weight there. Elsewhere, gather it "
            "with .full_tensor()."
        )


def no_autocast(tensor: Tensor):
    return torch.autocast(tensor.device.type, enabled=False)


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 products in float32, whatever the process allows elsewhere, on CUDA (TF32) and on the CPU (bfloat16).

    A distance is a small difference of large products: TF32 makes its error 100 to 200 times larger. The settings are
    of the whole process; they are put back on leaving, and left alone where they ask for float32 already.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    if not {"tf32", "bf16"}.intersection(before):
        yield
        return
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer interface alone, which leaves the older one at its default
        legacy = "highest"
    # The older interface sets both, and products refuse to run where the two disagree
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


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
        (..., N, V) in float32 (float64 for float64 inputs), from float32 products (except under torch.compile, which
        follows the process's TF32 setting, and in the backward pass):
        euclidean + harmax  -(n/2) log d^2      euclidean + softmax  -d
        dot + harmax        n log |s|           dot + softmax        s
        with d^2 and |s| floored where float32 cannot resolve them (zero gradient there).
    """
    spec = HeadSpec(exponent, similarity, normalization).check()
    dtype = operand_dtype(hidden_states, centers)
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if eager:
        refuse_dtensors(hidden_states, centers)
    with no_autocast(hidden_states), full_float32() if eager else nullcontext():
        x = widened(hidden_states.to(dtype))
        s, w2 = _products(x, centers.to(dtype), eager, norms=spec.name != "standard")
        if w2 is None:
            return s
        x2 = squared_norms(x).unsqueeze(-1)  # (..., N, 1)
        w2 = w2.unsqueeze(-2)  # (..., 1, V)
        if similarity == "dot":
            return exponent * torch.log(_floored(s.abs(), (x2 * w2).sqrt()))
        d2 = _floored(x2 + w2 - 2 * s, x2 + w2)
        return -(exponent / 2) * torch.log(d2) if normalization == "harmax" else -d2.sqrt()


def _products(x: Tensor, w: Tensor, eager: bool, norms: bool) -> tuple[Tensor, Tensor | None]:
    """x w^T (..., N, V) and, if asked for, the squared norms of w's rows (..., V), all in x's dtype."""
    differentiated = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    rows = INFERENCE_BLOCK_BYTES // (w.shape[-1] * x.itemsize or 1)
    once = norms or w.dtype != x.dtype
    few = eager and w.ndim == 2 and x.shape[:-1].numel() <= FEW_ROWS and w.shape[0] > rows > 0
    if not (once and few and x.device.type == "cpu") or differentiated:
        w = widened(w)
        return x @ w.mT, squared_norms(w) if norms else None
    products, w2 = [], []
    for block in w.split(rows):
        block = widened(block)
        products.append(x @ block.mT)
        if norms:
            w2.append(squared_norms(block))
    return torch.cat(products, -1), torch.cat(w2) if norms else None


def _floored(value: Tensor, scale: Tensor) -> Tensor:
    floor = (RELATIVE_FLOOR * scale + TINY).detach()
    return torch.where(value > floor, value, floor)
