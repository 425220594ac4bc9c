"""The chunked loss on CUDA: few, large, aligned products, and one kernel between them.

Symbols of the shape comments: N tokens, D hidden size, V classes, C tokens of one chunk, W classes and padding.
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .harmonic_elements import (
    Asked,
    Formula,
    LossAndGradients,
    Needs,
    Sides,
    add_term_gradient,
    norm_terms,
)
from .harmonic_elements import element_pass as elements_in_torch
from .harmonic_logits import RELATIVE_FLOOR, TINY, widened

# Bytes of the float32 (C, W) buffer. g has a buffer of its own: half as large for bfloat16 operands, as large for
# float32
CUDA_CHUNK_BYTES = 2 * 2**30
# Rows of a CUDA chunk are a multiple of this: whole tiles of the products, enough of them to fill the device
CUDA_CHUNK_ROWS = 128
# Classes are padded to a multiple of this on CUDA. Rows of u and g are then aligned to 16 bytes, without which neither
# tensor cores' fastest kernels nor wide loads serve: V = 50,257 becomes 50,304.
CUDA_ALIGNMENT = 64

# From dot products to losses and g: u (C, W), g (C, W) or None, sides, labels (C,), row_weight (C,), formula, asked ->
# losses (C,), sums of the rounded g over its rows (C,), row_weight dL/drate (C,). As `harmonic_kernels.element_pass`; u
# may be overwritten.
ElementPass = Callable[
    [Tensor, Tensor | None, Sides, Tensor, Tensor, Formula, Asked], tuple[Tensor, Tensor, Tensor | None]
]


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


def torch_element_pass(
    u: Tensor, g: Tensor | None, sides: Sides, labels: Tensor, row_weight: Tensor, formula: Formula, asked: Asked
) -> tuple[Tensor, Tensor, Tensor | None]:
    """An `ElementPass` of PyTorch's operators: the oracle of the Triton kernel, and its stand-in."""
    n_classes = sides.w2.shape[0]
    v = u[:, :n_classes]
    dtype = None if g is None else u.dtype
    losses, wide_g, row_factor, _, rates = elements_in_torch(v, sides, labels, row_weight, formula, dtype, asked)
    if g is None or wide_g is None or row_factor is None:
        return losses, sides.x2, None
    torch.mul(wide_g, row_factor[:, None], out=g[:, :n_classes])
    g[:, n_classes:] = 0
    return losses, g.sum(1, dtype=u.dtype), rates


def _triton_element_pass(
    u: Tensor, g: Tensor | None, sides: Sides, labels: Tensor, row_weight: Tensor, formula: Formula, asked: Asked
) -> tuple[Tensor, Tensor, Tensor | None]:
    """An `ElementPass` by the Triton kernel. Raises what Triton, its compilers and the driver raise."""
    from .harmonic_kernels import element_pass, triton

    if triton is None:
        raise RuntimeError('Triton is not installed: pip install triton, or take impl="torch"')
    if not has_kernel(formula, asked):
        return torch_element_pass(u, g, sides, labels, row_weight, formula, asked)
    return element_pass(u, g, sides, labels, row_weight, formula, asked, relative_floor=RELATIVE_FLOOR, tiny=TINY)


def has_kernel(formula: Formula, asked: Asked) -> bool:
    """Whether the Triton kernel does all of it. What it does not goes through PyTorch's operators: the gradient of a
    bias, which would be a sum over rows, and -d^2, which no head here has."""
    return asked.bias is None and not (formula.euclidean and formula.curve == "linear")


# How the warning begins. benchmarks/gpu, which must not measure the stand-in, makes an error of it
WITHOUT_KERNEL = "the head's loss goes on without its Triton kernel"
_triton_failed = False  # in this process: it is not tried, and not warned about, again


def _auto_element_pass(
    u: Tensor, g: Tensor | None, sides: Sides, labels: Tensor, row_weight: Tensor, formula: Formula, asked: Asked
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The kernel; where it cannot be had, PyTorch's operators and one warning."""
    global _triton_failed
    if not _triton_failed:
        try:
            return _triton_element_pass(u, g, sides, labels, row_weight, formula, asked)
        except torch.OutOfMemoryError:
            raise
        # Triton, ptxas, the C compiler that builds its launcher and the driver raise errors of many types. None of them
        # should end a run that can go on, and nothing has been written.
        except Exception as error:  # noqa: BLE001
            _triton_failed = True
            reason = (str(error).strip() or "no message").splitlines()[0]
            warnings.warn(
                f"{WITHOUT_KERNEL} ({type(error).__name__}: {reason}). The results are the same, the time is longer. "
                'impl="triton" raises the error in full; impl="torch" asks for this and does not warn.',
                RuntimeWarning,
                stacklevel=2,
            )
    return torch_element_pass(u, g, sides, labels, row_weight, formula, asked)


def element_pass_of(impl: str, dtype: torch.dtype) -> ElementPass:
    """What works between the products. The kernel is for float32 and bfloat16."""
    passes = {"auto": _auto_element_pass, "torch": torch_element_pass, "triton": _triton_element_pass}
    return torch_element_pass if dtype == torch.float64 else passes[impl]


def chunked_cuda(
    x: Tensor,
    w: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    formula: Formula,
    needs: Needs,
    element_pass: ElementPass,
) -> LossAndGradients:
    """`harmonic_loss.losses_and_gradients` of rounded x: few, large, aligned products, accumulated in place.

    bfloat16 operands go into the products as they are, and u comes out in float32. g has the operands' dtype and holds
    the row's factor: x would be rounded again by it.
    """
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
    x_term, w_term = norm_terms(x, x2, formula, 1), norm_terms(w[:n_classes], w2, formula, -1)
    losses = x2.new_empty(n_tokens)
    grad_x = x2.new_empty(x.shape) if needs.x else None
    grad_w = (x2.new_empty if n_tokens else x2.new_zeros)(w.shape) if needs.w else None
    grad_bias = x2.new_zeros(n_classes) if needs.bias else None
    grad_rate = x2.new_zeros((), dtype=torch.float64) if needs.rate else None
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
        sides, asked = Sides(x2[rows], w2, x_term[rows], w_term), Asked(needs.rate, grad_bias)
        losses[rows], row_sums, rates = element_pass(u, g, sides, labels[rows], row_weight[rows], formula, asked)
        if g is None:
            continue
        if grad_rate is not None and rates is not None:
            grad_rate += rates.sum(dtype=torch.float64)
        # Row and column sums are of the same rounded g as the products: its rounding then multiplies (x - w), not w
        if grad_x is not None and formula.euclidean:
            if formula.quantity == "lorentz":
                add_term_gradient(grad_x[rows].zero_(), x[rows], row_sums, formula, 1)
            else:
                torch.mul(x[rows], 2 * row_sums[:, None], out=grad_x[rows])
            _addmm(grad_x[rows], g, w, alpha=-2, beta=1)
        elif grad_x is not None:
            _mm(g, w, out=grad_x[rows])
        if grad_w is not None:
            _addmm(grad_w, g.mT, x[rows], alpha=-2 if formula.euclidean else 1, beta=0 if start == 0 else 1)
            if formula.euclidean:
                column_sums += g.sum(0, dtype=wide)
    if grad_w is not None and formula.euclidean:
        add_term_gradient(grad_w, w.to(wide), column_sums, formula, -1)
    grad_w = None if grad_w is None else grad_w[:n_classes]
    return LossAndGradients(losses, grad_x, grad_w, grad_bias, grad_rate)
