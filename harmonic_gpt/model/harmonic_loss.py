"""The loss of a head that never builds the (N, V) logits: a chunk of tokens at a time, gradients in the forward pass.

Symbols of the shape comments: N tokens, D hidden size, V classes, C tokens of one chunk. Needs only torch and the two
files beside it, harmonic_logits.py and (on CUDA) harmonic_kernels.py: the three can be copied into any project.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .harmonic_logits import (
    RELATIVE_FLOOR,
    TINY,
    HeadSpec,
    full_float32,
    no_autocast,
    operand_dtype,
    refuse_dtensors,
    squared_norms,
    widened,
)

LOG2_E = math.log2(math.e)
# Bytes of the one float32 (C, V) buffer of the chunked loss. Every chunk reads and writes all of grad_w once: shorter
# chunks cost time.
CHUNK_BYTES = 104 * 2**20
# On CUDA, where g has a buffer of its own: half as large for bfloat16 operands, as large for float32
CUDA_CHUNK_BYTES = 2 * 2**30
# Rows of a CUDA chunk are a multiple of this: whole tiles of the products, enough of them to fill the device
CUDA_CHUNK_ROWS = 128
# Classes are padded to a multiple of this on CUDA. Rows of u and g are then aligned to 16 bytes, without which neither
# tensor cores' fastest kernels nor wide loads serve: V = 50,257 becomes 50,304.
CUDA_ALIGNMENT = 64
# Bytes of the rows that the element passes in torch work on at a time: on the CPU small enough for its cache
BLOCK_BYTES = 4 * 2**20
CUDA_BLOCK_BYTES = 256 * 2**20
IMPLEMENTATIONS = ("auto", "torch", "triton")


def _mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b with a float32 (float64) result, into `out` if given. Products of bfloat16 are exact in float32."""
    if a.is_cuda and a.dtype == b.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32, out=out)  # CUDA alone has this kernel
    return torch.mm(widened(a), widened(b), out=out)


def _addmm(total: Tensor, a: Tensor, b: Tensor, *, alpha: float, beta: int) -> None:
    """total <- beta total + alpha a @ b, in place, for a float32 (float64) total. beta = 0 does not read it."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, alpha=alpha, beta=beta, out=total)
    elif a.is_cuda and torch.__version__ >= "2.11":  # compares by number. Before, the total had to be of a's dtype
        torch.addmm(total, a, b, out_dtype=total.dtype, alpha=alpha, beta=beta, out=total)
    else:
        product = _mm(a, b).mul_(alpha)
        total.copy_(product) if beta == 0 else total.mul_(beta).add_(product)


class _Form(NamedTuple):
    """How a head's logit comes from its inner quantity u (d^2 or s), in base 2: exp2 is the cheaper exponential.

    z_j log2(e) = rate * t_j with t = `transform`(u);  dz_j/du_j = slope / divisor_j, where the divisor is u, t or 1.
    """

    rate: float
    slope: float
    divisor: str


def _form(spec: HeadSpec) -> _Form:
    n = spec.exponent
    match spec.similarity, spec.normalization:
        case "euclidean", "harmax":  # t = log2 d^2, z = -(n/2) log d^2
            return _Form(-n / 2, -n / 2, "u")
        case "euclidean", "softmax":  # t = d, z = -d
            return _Form(-LOG2_E, -0.5, "t")
        case "dot", "harmax":  # t = log2 |s|, z = n log |s|
            return _Form(n, n, "u")
        case _:  # t = s = z
            return _Form(LOG2_E, 1.0, "1")


def _floor(u: Tensor, x2: Tensor, w2: Tensor, w2_max: Tensor, spec: HeadSpec) -> tuple[Tensor, Tensor | None]:
    """Raise u (C, V) to its floor, in place. Returns the extreme of each row (C, 1) that has the largest logit (of |s|
    for dot + harmax), and where the floor acted (None: nowhere)."""
    if spec.similarity == "dot":
        if spec.normalization == "softmax":
            return u.amax(1, keepdim=True), None
        floor = (x2[:, None] * w2).sqrt_().mul_(RELATIVE_FLOOR).add_(TINY)
        floored = u.abs() <= floor
        u.copy_(torch.where(floored, floor, u))
        return u.abs().amax(1, keepdim=True), floored
    smallest = u.amin(1, keepdim=True)
    # No floor of a row exceeds that of the largest center. Usually no distance comes near it, and the minimum proves
    # it. (Written so that a NaN takes the long way, and stays a NaN. A GPU would have to stop for the answer.)
    if not u.is_cuda and (smallest > (RELATIVE_FLOOR * (x2 + w2_max) + TINY)[:, None]).all():
        return smallest, None
    floor = (x2[:, None] + w2).mul_(RELATIVE_FLOOR).add_(TINY)
    floored = u <= floor
    u.copy_(torch.where(floored, floor, u))
    return u.amin(1, keepdim=True), floored


def _transform(u: Tensor, spec: HeadSpec, out: Tensor | None = None) -> Tensor:
    """t of `_Form`, elementwise."""
    if spec.normalization == "harmax":
        return torch.log2(u, out=out) if spec.similarity == "euclidean" else torch.log2(u.abs(), out=out)
    if spec.similarity == "euclidean":
        return torch.sqrt(u, out=out)
    return u if out is None else out.copy_(u)


def _element_pass(
    u: Tensor,
    x2: Tensor,
    w2: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    spec: HeadSpec,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Everything between the products of one chunk: from u to the losses, and to g with row_factor g = row_weight (p -
    onehot) dz/du.

    Args:
        u: (C, V), overwritten: w2 - 2 x.w if euclidean, else x.w.
        x2 (C,), w2 (V,): squared norms. labels, row_weight: (C,).
        gradient_dtype: dtype that g is rounded to; None: losses only.
    Returns: losses (C,); g (C, V) in gradient_dtype; row_factor (C,), kept apart because x costs less to multiply by it
        than g; sums of the rounded g over its rows (C,), in u's dtype, for euclidean heads.
    """
    n_rows, n_classes = u.shape
    # As many rows at a time as stay in the processor's cache; a GPU wants few, large launches
    block_bytes = CUDA_BLOCK_BYTES if u.is_cuda else BLOCK_BYTES
    block = max(1, min(n_rows, block_bytes // (n_classes * u.itemsize)))
    t_buffer = u.new_empty(block, n_classes)
    form, w2_max = _form(spec), w2.max()
    losses, row_factor, row_sums = (u.new_empty(n_rows) for _ in range(3))
    g = u if gradient_dtype in (None, u.dtype) else u.new_empty(u.shape, dtype=gradient_dtype)
    for start in range(0, n_rows, block):
        rows = slice(start, min(start + block, n_rows))
        v, y = u[rows], labels[rows, None]  # (block, V), (block, 1)
        if spec.similarity == "euclidean":
            v.add_(x2[rows, None])
        extreme, floored = _floor(v, x2[rows], w2, w2_max, spec)
        t = v if form.divisor == "1" else _transform(v, spec, out=t_buffer[: rows.stop - start])
        top = form.rate * _transform(extreme, spec)  # (block, 1) largest logit, base 2
        t_label = t.gather(1, y)
        if form.divisor == "t":
            v.copy_(t)  # the divisor is needed after t is overwritten
        e = torch.add(-top, t, alpha=form.rate, out=t).exp2_()
        # The label is kept out of the sum: 1 - p_y = others / total and loss = log1p(others / e_y) stay exact as p_y
        # nears 1
        e_label = e.gather(1, y)
        others = e.scatter_(1, y, 0).sum(1, keepdim=True)
        total = others + e_label
        unlikely = total.log() + (top - form.rate * t_label) / LOG2_E  # e_label may have underflowed
        losses[rows] = torch.where(e_label > 0.5, torch.log1p(others / e_label), unlikely).squeeze(1)
        if gradient_dtype is None:
            continue
        row_factor[rows] = form.slope * row_weight[rows] / total.squeeze(1)
        if form.divisor == "1":
            v.scatter_(1, y, -others)  # v is e
        else:
            g_label = -others / v.gather(1, y)
            torch.div(e, v, out=v).scatter_(1, y, g_label)
            if floored is not None:
                v.masked_fill_(floored, 0)
        if g is not u:
            g[rows] = v
            v = g[rows].to(u.dtype)
        if spec.similarity == "euclidean":
            row_sums[rows] = v.sum(1)
    return (losses, None, None, None) if gradient_dtype is None else (losses, g, row_factor, row_sums)


# From dot products to losses and g: u (C, W), g (C, W) or None, x2 (C,), w2 (V,), labels (C,), row_weight (C,), spec ->
# losses (C,), sums of the rounded g over its rows (C,). As `harmonic_kernels.element_pass`; u may be overwritten.
ElementPass = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, HeadSpec], tuple[Tensor, Tensor]]


def torch_element_pass(
    u: Tensor, g: Tensor | None, x2: Tensor, w2: Tensor, labels: Tensor, row_weight: Tensor, spec: HeadSpec
) -> tuple[Tensor, Tensor]:
    """An `ElementPass` of PyTorch's operators: the oracle of the Triton kernel, and its stand-in."""
    n_classes = w2.shape[0]
    v = u[:, :n_classes]
    if spec.similarity == "euclidean":
        v.mul_(-2).add_(w2)
    losses, wide_g, row_factor, _ = _element_pass(v, x2, w2, labels, row_weight, spec, None if g is None else u.dtype)
    if g is None or wide_g is None or row_factor is None:
        return losses, x2
    torch.mul(wide_g, row_factor[:, None], out=g[:, :n_classes])
    g[:, n_classes:] = 0
    return losses, g.sum(1, dtype=u.dtype)


def _triton_element_pass(
    u: Tensor, g: Tensor | None, x2: Tensor, w2: Tensor, labels: Tensor, row_weight: Tensor, spec: HeadSpec
) -> tuple[Tensor, Tensor]:
    """An `ElementPass` by the Triton kernel. Raises what Triton, its compilers and the driver raise."""
    from .harmonic_kernels import element_pass, triton

    if triton is None:
        raise RuntimeError('Triton is not installed: pip install triton, or take impl="torch"')
    form = _form(spec)
    return element_pass(
        u, g, x2, w2, labels, row_weight,
        euclidean=spec.similarity == "euclidean", harmax=spec.normalization == "harmax",
        rate=form.rate, slope=form.slope, relative_floor=RELATIVE_FLOOR, tiny=TINY,
    )  # fmt: skip


_triton_failed = False  # in this process: it is not tried, and not warned about, again


def _auto_element_pass(
    u: Tensor, g: Tensor | None, x2: Tensor, w2: Tensor, labels: Tensor, row_weight: Tensor, spec: HeadSpec
) -> tuple[Tensor, Tensor]:
    """The kernel; where it cannot be had, PyTorch's operators and one warning."""
    global _triton_failed
    if not _triton_failed:
        try:
            return _triton_element_pass(u, g, x2, w2, labels, row_weight, spec)
        except torch.OutOfMemoryError:
            raise
        # Triton, ptxas, the C compiler that builds its launcher and the driver raise errors of many types. None of them
        # should end a run that can go on, and nothing has been written.
        except Exception as error:  # noqa: BLE001
            _triton_failed = True
            reason = (str(error).strip() or "no message").splitlines()[0]
            warnings.warn(
                f"harmonic_cross_entropy goes on without its Triton kernel ({type(error).__name__}: {reason}). The "
                'results are the same, the time is longer. impl="triton" raises the error in full; impl="torch" asks '
                "for this and does not warn.",
                RuntimeWarning,
                stacklevel=2,
            )
    return torch_element_pass(u, g, x2, w2, labels, row_weight, spec)


def _losses_and_gradients(
    x: Tensor,
    w: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    spec: HeadSpec,
    dtype: torch.dtype,
    needs: tuple[bool, bool],
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss of every token, and the gradients of sum_i row_weight_i * loss_i, a chunk of tokens at a time.

    Args:
        x (N, D), w (V, D): operands, rounded to `dtype` here, so that the gradients of float32 parameters are not.
        labels (N,): within [0, V). row_weight (N,): float, 0 for ignored tokens.
        needs: whether grad_x and grad_w are asked for. What is not costs nothing.
    Returns: losses (N,), grad_x (N, D), grad_w (V, D), all in float32 (float64); gradients None if not asked for.
    """
    with no_autocast(x), full_float32():
        if x.is_cuda or impl == "triton":
            passes = {"auto": _auto_element_pass, "torch": torch_element_pass, "triton": _triton_element_pass}
            element_pass = torch_element_pass if dtype == torch.float64 else passes[impl]
            return _chunked_cuda(x.to(dtype), w, labels, row_weight, spec, needs, element_pass)
        return _chunked(x.to(dtype), w.to(dtype), labels, row_weight, spec, needs)


def _chunked(
    x: Tensor, w: Tensor, labels: Tensor, row_weight: Tensor, spec: HeadSpec, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_losses_and_gradients` of rounded operands, on the CPU: the element passes take rows that its cache holds."""
    needs_x, needs_w = needs
    gradient_dtype = x.dtype if any(needs) else None  # bf16 operands: g is rounded too, for bf16 products
    x, w = widened(x), widened(w)  # the same values; row_factor x is then not rounded a second time
    x2, w2 = squared_norms(x), squared_norms(w)  # (N,), (V,)
    n_tokens, n_classes = x.shape[0], w.shape[0]
    euclidean = spec.similarity == "euclidean"
    losses = x2.new_empty(n_tokens)
    grad_x = x2.new_empty(x.shape) if needs_x else None
    # The first chunk overwrites it
    grad_w = (x2.new_empty if n_tokens else x2.new_zeros)(w.shape) if needs_w else None
    column_sums = x2.new_zeros(n_classes)  # sum_i g_ij
    most = max(16, CHUNK_BYTES // (n_classes * x.itemsize))
    # of equal length: a short one at the end is slow
    chunk = max(1, math.ceil(n_tokens / max(1, math.ceil(n_tokens / most))))
    buffer = x2.new_empty(chunk, n_classes)

    for start in range(0, n_tokens, chunk):
        rows = slice(start, min(start + chunk, n_tokens))
        u = buffer[: rows.stop - start]
        # A product that starts from w2 costs no more than one that starts from zero
        torch.addmm(w2, x[rows], w.mT, alpha=-2, out=u) if euclidean else torch.mm(x[rows], w.mT, out=u)
        losses[rows], g, row_factor, row_sums = _element_pass(
            u, x2[rows], w2, labels[rows], row_weight[rows], spec, gradient_dtype
        )
        if g is None or row_factor is None or row_sums is None:  # without gradients
            continue
        # Row and column sums are of the same rounded g as the products: its rounding then multiplies (x - w), not w
        g = widened(g)
        if grad_x is not None:
            torch.mm(g, w, out=grad_x[rows])
            if euclidean:
                grad_x[rows].mul_(-2).addcmul_(x[rows], 2 * row_sums[:, None])
            grad_x[rows].mul_(row_factor[:, None])
        if grad_w is not None:
            sign = -2 if euclidean else 1
            grad_w.addmm_(g.mT, x[rows] * row_factor[:, None], beta=0 if start == 0 else 1, alpha=sign)
            if euclidean:
                column_sums += g.mT @ row_factor
    if grad_w is not None and euclidean:
        grad_w.addcmul_(w, 2 * column_sums[:, None])
    return losses, grad_x, grad_w


def _chunked_cuda(
    x: Tensor,
    w: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    spec: HeadSpec,
    needs: tuple[bool, bool],
    element_pass: ElementPass,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_losses_and_gradients` of rounded x, on CUDA: few, large, aligned products, accumulated in place.

    bfloat16 operands go into the products as they are, and u comes out in float32. g has the operands' dtype and holds
    the row's factor: x would be rounded again by it.
    """
    needs_x, needs_w = needs
    n_tokens, n_classes = x.shape[0], w.shape[0]
    wide = widened(x[:0]).dtype
    width = math.ceil(n_classes / CUDA_ALIGNMENT) * CUDA_ALIGNMENT
    if w.dtype != x.dtype or width != n_classes:
        # The rows of zeros have dot products of 0, which the element pass does not look at, and g = 0
        padded = x.new_empty(width, w.shape[1])
        padded[:n_classes].copy_(w)
        padded[n_classes:].zero_()
        w = padded
    x2, w2 = (torch.linalg.vector_norm(rows, dim=-1, dtype=wide).square() for rows in (x, w[:n_classes]))
    euclidean = spec.similarity == "euclidean"
    losses = x2.new_empty(n_tokens)
    grad_x = x2.new_empty(x.shape) if needs_x else None
    grad_w = (x2.new_empty if n_tokens else x2.new_zeros)(w.shape) if needs_w else None
    column_sums = x2.new_zeros(width)
    most = max(1, CUDA_CHUNK_BYTES // (width * wide.itemsize) // CUDA_CHUNK_ROWS) * CUDA_CHUNK_ROWS
    n_chunks = max(1, math.ceil(n_tokens / most))
    chunk = min(max(1, n_tokens), math.ceil(n_tokens / n_chunks / CUDA_CHUNK_ROWS) * CUDA_CHUNK_ROWS or 1)
    u_buffer = x2.new_empty(chunk, width)
    g_buffer = x.new_empty(chunk, width) if any(needs) else None

    for start in range(0, n_tokens, chunk):
        rows = slice(start, min(start + chunk, n_tokens))
        u = u_buffer[: rows.stop - start]
        g = None if g_buffer is None else g_buffer[: rows.stop - start]
        _mm(x[rows], w.mT, out=u)
        losses[rows], row_sums = element_pass(u, g, x2[rows], w2, labels[rows], row_weight[rows], spec)
        if g is None:
            continue
        # Row and column sums are of the same rounded g as the products: its rounding then multiplies (x - w), not w
        if grad_x is not None and euclidean:
            torch.mul(x[rows], 2 * row_sums[:, None], out=grad_x[rows])
            _addmm(grad_x[rows], g, w, alpha=-2, beta=1)
        elif grad_x is not None:
            _mm(g, w, out=grad_x[rows])
        if grad_w is not None:
            _addmm(grad_w, g.mT, x[rows], alpha=-2 if euclidean else 1, beta=0 if start == 0 else 1)
            if euclidean:
                column_sums += g.sum(0, dtype=wide)
    if grad_w is not None and euclidean:
        grad_w.addcmul_(w.to(wide), 2 * column_sums[:, None])
    return losses, grad_x, None if grad_w is None else grad_w[:n_classes]


def _refuse_double_backward() -> None:
    # Gradient mode is on inside backward exactly when create_graph=True asked for it. Without this check the gradients
    # would be constants, and a penalty on them would silently do nothing.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "double backward (create_graph=True) through harmonic_cross_entropy is not supported; "
            "use F.cross_entropy(head_logits(...), labels), which materialises the logits"
        )


class _ReducedLoss(torch.autograd.Function):
    """Sum of row_weight * loss. Gradients are formed in forward and scaled in backward: three GEMMs in all, like a
    linear head."""

    @staticmethod
    def forward(ctx, hidden_states, centers, labels, row_weight, spec, dtype, impl):
        losses, *ctx.gradients = _losses_and_gradients(
            hidden_states, centers, labels, row_weight, spec, dtype, ctx.needs_input_grad[:2], impl
        )
        return (losses * row_weight).sum()

    @staticmethod
    def backward(ctx, grad_output):
        _refuse_double_backward()
        if ctx.gradients is None:
            raise RuntimeError(
                "backward ran twice through the same harmonic loss. Its gradients are formed in the forward pass and "
                'given away once: compute the loss again, or use reduction="none", which recomputes in backward.'
            )
        (grad_x, grad_w), ctx.gradients = ctx.gradients, None
        scaled = (None if gradient is None else gradient.mul_(grad_output) for gradient in (grad_x, grad_w))
        return *scaled, None, None, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Every token's loss. Backward needs the upstream vector and recomputes, so it costs one more GEMM than
    `_ReducedLoss`."""

    @staticmethod
    def forward(ctx, hidden_states, centers, labels, row_weight, spec, dtype, impl):
        ctx.save_for_backward(hidden_states, centers, labels, row_weight)
        ctx.spec, ctx.dtype, ctx.impl = spec, dtype, impl
        losses, _, _ = _losses_and_gradients(
            hidden_states, centers, labels, row_weight, spec, dtype, (False, False), impl
        )
        return losses * row_weight

    @staticmethod
    def backward(ctx, grad_output):
        _refuse_double_backward()
        hidden_states, centers, labels, row_weight = ctx.saved_tensors
        upstream = row_weight * grad_output
        _, grad_x, grad_w = _losses_and_gradients(
            hidden_states, centers, labels, upstream, ctx.spec, ctx.dtype, ctx.needs_input_grad[:2], ctx.impl
        )
        return grad_x, grad_w, None, None, None, None, None


def _check_impl(impl: str, hidden_states: Tensor, dtype: torch.dtype) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: expected one of {IMPLEMENTATIONS}, got {impl!r}")
    if impl != "triton":
        return
    from .harmonic_kernels import INTERPRETED

    if dtype == torch.float64 or not (hidden_states.is_cuda or INTERPRETED):
        raise ValueError(
            f'impl="triton" is for float32 and bfloat16 on CUDA, got {dtype} on {hidden_states.device}; take "auto"'
        )


@torch.compiler.disable
def harmonic_cross_entropy(
    hidden_states: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    exponent: float,
    similarity: str = "euclidean",
    normalization: str = "harmax",
    reduction: str = "mean",
    ignore_index: int = -100,
    impl: str = "auto",
) -> Tensor:
    """Cross-entropy of a harmonic (or any of the four) head, in nats, without building the (N, V) logits.

    Equal to `F.cross_entropy(head_logits(hidden_states, centers, ...), labels)`; memory is one chunk (CHUNK_BYTES; on
    CUDA up to CUDA_CHUNK_BYTES and g) and the gradients themselves. float32 products are made in float32, whatever the
    process allows elsewhere (TF32). Frozen operands cost nothing.

    Args:
        hidden_states: (..., D) float32, bfloat16 or float64, without gradients float16 too; already multiplied by
            hidden_scale.
        centers: (V, D), the rows of the unembedding.
        labels: (...,) int64 class ids in [0, V), or ignore_index.
        exponent: harmonic exponent n on the distance (arXiv 2502.01628, section 2); softmax heads ignore it.
        similarity: "euclidean" or "dot". normalization: "harmax" or "softmax".
        reduction: "mean" over targets that are not ignored (0 if there are none), "sum", or "none" (shape of labels, 0
            where ignored).
        impl: what works between the products on CUDA. "auto": a Triton kernel, and PyTorch's operators with one warning
            where it cannot be had; "triton" raises there; "torch": PyTorch's operators.

    Returns: float32 loss (float64 for float64 inputs). Under autocast the operands are rounded to autocast's dtype, and
        distances are formed in float32 from the rounded operands.
    Raises:
        ValueError: wrong shapes, labels out of range (checked on the CPU; CUDA asserts), gradients in float16, DTensors
            (a shard is not the whole matrix), unknown options, impl="triton" for float64 or off CUDA.
        RuntimeError: second backward ("mean", "sum"), or double backward.
    """
    spec = HeadSpec(float(exponent), similarity, normalization).check()
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if centers.ndim != 2 or hidden_states.shape[-1] != centers.shape[1] or hidden_states.shape[:-1] != labels.shape:
        raise ValueError(
            "expected hidden_states (..., D), centers (V, D) and labels (...), got "
            f"{tuple(hidden_states.shape)}, {tuple(centers.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: expected integer class ids, got {labels.dtype}")
    refuse_dtensors(hidden_states, centers)
    dtype = operand_dtype(hidden_states, centers)
    differentiated = torch.is_grad_enabled() and (hidden_states.requires_grad or centers.requires_grad)
    if differentiated and dtype == torch.float16:
        raise ValueError(
            "the loss is trained in float32, float64 or bfloat16, got float16: its gradients are formed in the forward "
            "pass, where float16 loss scaling cannot reach them. Use bfloat16 (mixed_precision=bf16), or evaluate "
            "under torch.no_grad()."
        )
    _check_impl(impl, hidden_states, dtype)
    x, y = hidden_states.reshape(-1, hidden_states.shape[-1]), labels.reshape(-1).long()
    n_classes = centers.shape[0]
    kept = y != ignore_index
    in_range = (~kept | ((y >= 0) & (y < n_classes))).all()
    if y.is_cuda:
        torch._assert_async(in_range, "a label is outside [0, V)")  # no synchronisation
    elif not in_range:
        bad = y[kept & ((y < 0) | (y >= n_classes))][0].item()
        raise ValueError(f"labels: expected ids in [0, {n_classes}) or ignore_index {ignore_index}, got {bad}")
    y = y.where(kept, 0)
    row_weight = kept.to(torch.float64 if dtype == torch.float64 else torch.float32)

    if not differentiated:
        needs = (False, False)
        losses = _losses_and_gradients(x, centers, y, row_weight, spec, dtype, needs, impl)[0] * row_weight
    else:
        function = _TokenLosses if reduction == "none" else _ReducedLoss
        losses = function.apply(x, centers, y, row_weight, spec, dtype, impl)
    if reduction == "none":
        return losses.view(labels.shape)
    total = losses.sum()
    return total / row_weight.sum().clamp_min(1) if reduction == "mean" else total
