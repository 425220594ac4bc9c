"""The logits of a head, materialised: those of inference, and what the loss and the kernels are tested against.

Symbols of the shape comments: N tokens, D hidden size, V classes. What a head is: heads.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from .heads import Head, Values, find_head, find_pair

# Distances are formed as ||x||^2 + ||w||^2 - 2 x.w in float32, whose rounding error is about this share of ||x||^2 +
# ||w||^2. Below it a distance is noise; it is raised to the floor, and its gradient is zero.
RELATIVE_FLOOR = 4e-6
# The smallest floor: both norms may be zero
TINY = torch.finfo(torch.float32).tiny
# Inference on the CPU reads the centers once: in blocks that stay in its cache from the product to the norms. For up to
# so many rows of hidden states; with more, the product takes the time, not the reading.
INFERENCE_BLOCK_BYTES = 2**20
FEW_ROWS = 16
# Bytes of the largest intermediate of a head without a product: a block of tokens, (block, V, D)
PAIRS_BYTES = 64 * 2**20


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
    exponent: float | Tensor | None = None,
    similarity: str = "euclidean",
    normalization: str = "harmax",
    head: str | None = None,
    log_prior: Tensor | None = None,
    center_norms: Tensor | None = None,
    **constants: float | Tensor,
) -> Tensor:
    """Unnormalised logits z, of which softmax(z) are the class probabilities. Differentiable; builds all of (N, V).

    Args:
        hidden_states: (..., N, D), already multiplied by hidden_scale.
        centers: (V, D), or (..., V, D) with the same leading dimensions (one head per batch entry).
        head: name of one of `heads.HEADS`; None: the one of the paper's ablation that similarity ("euclidean" | "dot")
            and normalization ("harmax" | "softmax") name.
        exponent: harmonic exponent n on the distance; ignored by softmax. constants: the head's others.
        log_prior: (V,), added to the logits.
        center_norms: (V,), `squared_norms(centers)` where it is known; used where `takes_center_norms`.

    Returns:
        (..., N, V) in float32 (float64 for float64 inputs), from float32 products (except under torch.compile, which
        follows the process's TF32 setting, and in the backward pass). Distances and the |s| of logarithms are floored
        where float32 cannot resolve them (zero gradient there).
    Raises ValueError: as `head_cross_entropy`.
    """
    if head is None:
        if exponent is None:
            raise ValueError("exponent: expected a number (or name a head, whose default it is)")
        head, pair = find_pair(similarity, normalization, float(exponent))
        constants = {**constants, **pair}
    elif exponent is not None:
        constants = {**constants, "exponent": exponent}
    definition = find_head(head)
    values = definition.values(centers.shape[-1], constants)
    dtype = operand_dtype(hidden_states, centers)
    if definition.float32:
        dtype = torch.promote_types(dtype, torch.float32)
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if eager:
        refuse_dtensors(hidden_states, centers)
    with no_autocast(hidden_states), full_float32() if eager else nullcontext():
        if definition.form is None:
            return pair_logits(definition, hidden_states.to(dtype), centers.to(dtype), values, log_prior)
        z = _product_logits(definition, hidden_states, centers, values, dtype, eager, center_norms)
        return z if log_prior is None else z + widened(log_prior)


def pair_logits(head: Head, x: Tensor, w: Tensor, values: Values, log_prior: Tensor | None = None) -> Tensor:
    """(..., N, V): the formula of a head for every pair of a row of x (..., N, D) and one of w (..., V, D).

    Builds (..., rows, V, D): all N rows where gradients are asked for, else PAIRS_BYTES at a time.
    """
    x, w = widened(x), widened(w)
    rows = max(1, PAIRS_BYTES // (x.shape[:-2].numel() * w.shape[-2:].numel() * x.itemsize or 1))
    rows = max(1, x.shape[-2]) if torch.is_grad_enabled() else rows
    z = torch.cat([head.logit(part.unsqueeze(-2), w.unsqueeze(-3), values) for part in x.split(rows, -2)], -2)
    return z if log_prior is None else z + widened(log_prior)


def takes_center_norms(head: Head, centers: Tensor) -> bool:
    """Whether ||w||^2 of the centers as they are is what the head's logits need."""
    if head.form is None or head.form == ("dot", "linear") or head.form.quantity == "lorentz":
        return False
    return head.prepare is None and centers.dtype == widened(centers[:0]).dtype


def _product_logits(
    head: Head, x: Tensor, w: Tensor, values: Values, dtype: torch.dtype, eager: bool, center_norms: Tensor | None
) -> Tensor:
    """Logits (..., N, V) of a head that has a form."""
    assert head.form is not None
    quantity, curve = head.form
    s, x2, w2, x_term, w_term = _products(head, x, w, values, dtype, eager, center_norms)
    if x2 is None or w2 is None or x_term is None or w_term is None:
        return _per_temperature(s, values)
    if quantity == "dot":
        return values["exponent"] * torch.log(_floored(s.abs(), (x2 * w2).sqrt()))
    u = _floored(x_term + w_term - 2 * s, x2 + w2)
    if curve == "root":
        return _per_temperature(-u.sqrt(), values)
    if curve == "linear":
        return _per_temperature(-u, values)
    if curve == "log":
        return -(values["exponent"] / 2) * torch.log(u)
    half = u / 2
    return -values["exponent"] * torch.log(torch.log1p(half + (half * (half + 2)).sqrt()))


def _per_temperature(z: Tensor, values: Values) -> Tensor:
    temperature = values["temperature"]
    return z if isinstance(temperature, float) and temperature == 1.0 else z / temperature


def _sides(rows: Tensor, head: Head, sign: int) -> tuple[Tensor | None, Tensor | None]:
    """(squared norms, terms of u) of the rows of one side, (...,); None where the head's form needs none."""
    assert head.form is not None
    if head.form == ("dot", "linear"):
        return None, None
    squared = squared_norms(rows)
    return squared, rows[..., -1] * (2 * sign) if head.form.quantity == "lorentz" else squared


def _products(
    head: Head, x: Tensor, w: Tensor, values: Values, dtype: torch.dtype, eager: bool, center_norms: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """x'.w' (..., N, V) of the prepared operands, rounded to `dtype`, and `_sides` of both, (..., N, 1) and
    (..., 1, V), in at least float32."""

    def rounded(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        if head.prepare is not None:
            x, w = head.prepare(widened(x), widened(w), values)
        return widened(x.to(dtype)), widened(w.to(dtype))

    rows = INFERENCE_BLOCK_BYTES // (w.shape[-1] * max(4, x.itemsize) or 1)
    once = head.form != ("dot", "linear") or head.prepare is not None or w.dtype != widened(w[:0]).dtype
    few = eager and w.ndim == 2 and x.shape[:-1].numel() <= FEW_ROWS and w.shape[0] > rows > 0
    learned = [value for value in values.values() if isinstance(value, Tensor)]
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (x, w, *learned))
    w2, w_term = center_norms, center_norms
    if center_norms is not None and dtype == w.dtype and takes_center_norms(head, w):
        x = widened(x.to(dtype))
        products = x @ w.mT
    elif not (once and few and x.device.type == "cpu") or differentiated:
        x, w = rounded(x, w)
        products, (w2, w_term) = x @ w.mT, _sides(w, head, -1)
    else:
        pairs = (rounded(x, block) for block in w.split(rows))
        parts = [(x, x @ block.mT, *_sides(block, head, -1)) for x, block in pairs]
        x = parts[0][0]
        products = torch.cat([part for _, part, _, _ in parts], -1)
        w2, w_term = (
            torch.cat([side for side in sides if side is not None]) if sides[0] is not None else None
            for sides in ([norms for *_, norms, _ in parts], [terms for *_, terms in parts])
        )
    x2, x_term = _sides(x, head, 1)
    if x2 is None or x_term is None or w2 is None or w_term is None:
        return products, None, None, None, None
    return products, x2.unsqueeze(-1), w2.unsqueeze(-2), x_term.unsqueeze(-1), w_term.unsqueeze(-2)


def _floored(value: Tensor, scale: Tensor) -> Tensor:
    floor = (RELATIVE_FLOOR * scale + TINY).detach()
    return torch.where(value > floor, value, floor)
