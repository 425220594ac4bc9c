"""Triton twin of `harmonic_loss._element_pass` for CUDA. The torch version is its oracle
(tests/model/test_harmonic_kernels.py).

One program a row: it reads the row's dot products once for the normalizer and once for g, and writes g, where the torch
version makes about ten passes. Needs the `triton` library, which CUDA builds of torch bring along.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch
    triton = None

if triton is not None:

    @triton.jit
    def _logits(s, x2, w2, rate, relative_floor, tiny, EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr):
        """Dot products to (z log2 e, divisor of dz/du, where the floor acted); the heads of `harmonic_loss._form`."""
        if EUCLIDEAN:
            floor = relative_floor * (x2 + w2) + tiny
            u = x2 + w2 - 2.0 * s
            floored = u <= floor
            u = tl.where(floored, floor, u)  # a NaN is not <= floor: it stays
            if HARMAX:
                return rate * tl.log2(u), u, floored
            d = tl.sqrt(u)
            return rate * d, d, floored
        if HARMAX:
            floor = relative_floor * tl.sqrt(x2 * w2) + tiny
            floored = tl.abs(s) <= floor
            u = tl.where(floored, floor, s)
            return rate * tl.log2(tl.abs(u)), u, floored
        return rate * s, s * 0.0 + 1.0, s != s

    @triton.jit
    def _element_kernel(
        u_ptr, g_ptr, x2_ptr, w2_ptr, labels_ptr, weight_ptr, losses_ptr, row_sums_ptr,
        n_classes, rate, slope, relative_floor, tiny, log2_e,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        u_row = u_ptr + row.to(tl.int64) * n_classes
        x2 = tl.load(x2_ptr + row)
        label = tl.load(labels_ptr + row)
        # Before the reductions below: g may overwrite u, and only they keep one warp from storing before another has
        # read this
        s_label, w2_label = tl.load(u_row + label), tl.load(w2_ptr + label)
        z_label, _divisor, _floored = _logits(s_label, x2, w2_label, rate, relative_floor, tiny, EUCLIDEAN, HARMAX)
        # Running maximum and sum of exponentials of all classes but the label, by column of the block; joined after the
        # loop
        peak = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n_classes, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = (columns < n_classes) & (columns != label)
            s = tl.load(u_row + columns, mask=inside, other=0.0)
            w2 = tl.load(w2_ptr + columns, mask=inside, other=0.0)
            z, _, _ = _logits(s, x2, w2, rate, relative_floor, tiny, EUCLIDEAN, HARMAX)
            higher = tl.where(inside, tl.maximum(peak, z), peak)
            # peak is -inf before the first column: exp2(-inf - finite) = 0
            total = tl.where(inside, total * tl.exp2(peak - higher) + tl.exp2(z - higher), total)
            peak = higher
        top = tl.maximum(tl.max(peak, 0), z_label)
        others = tl.sum(total * tl.exp2(peak - top), 0)  # a lane without a column adds 0 * exp2(-inf)
        e_label = tl.exp2(z_label - top)
        log_normalizer = top + tl.log2(others + e_label)
        # log1p(r) = r log(1 + r) / ((1 + r) - 1) in floating point (Kahan), for a label that is likely
        ratio = others / tl.where(e_label > 0.5, e_label, 1.0)
        one_more = 1.0 + ratio
        log1p = tl.where(
            one_more == 1.0, ratio, tl.log(one_more) * (ratio / tl.where(one_more == 1.0, 1.0, one_more - 1.0))
        )
        tl.store(losses_ptr + row, tl.where(e_label > 0.5, log1p, (log_normalizer - z_label) / log2_e))
        if GRADIENT:
            scale = slope * tl.load(weight_ptr + row)
            g_row = g_ptr + row.to(tl.int64) * n_classes
            row_sum = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, n_classes, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                inside = columns < n_classes
                s = tl.load(u_row + columns, mask=inside, other=0.0)
                w2 = tl.load(w2_ptr + columns, mask=inside, other=0.0)
                z, divisor, floored = _logits(s, x2, w2, rate, relative_floor, tiny, EUCLIDEAN, HARMAX)
                p = tl.where(columns == label, -others / (others + e_label), tl.exp2(z - log_normalizer))  # p - onehot
                g = scale * (p / divisor)
                if EUCLIDEAN or HARMAX:
                    g = tl.where(floored, 0.0, g)
                rounded = g.to(g_ptr.dtype.element_ty)
                tl.store(g_row + columns, rounded, mask=inside)
                row_sum += tl.where(inside, rounded.to(tl.float32), 0.0)
            tl.store(row_sums_ptr + row, tl.sum(row_sum, 0))


def element_pass(
    u: Tensor,
    x2: Tensor,
    w2: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    gradient_dtype: torch.dtype | None,
    *,
    euclidean: bool,
    harmax: bool,
    rate: float,
    slope: float,
    relative_floor: float,
    tiny: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `harmonic_loss._element_pass`, in float32, but from plain dot products u = x.w and with the row factor in g.

    Both would cost a pass in torch and cost nothing here. u (C, V) contiguous; overwritten by g if gradient_dtype is
    float32. rate, slope: of `harmonic_loss._form`. Returns losses (C,), g (C, V), sums of the rounded g over its rows
    (C,).
    """
    n_rows, n_classes = u.shape
    losses, row_sums = torch.empty_like(x2), torch.empty_like(x2)
    g = u if gradient_dtype in (None, u.dtype) else torch.empty_like(u, dtype=gradient_dtype)
    with torch.cuda.device(u.device) if u.is_cuda else nullcontext():  # Triton launches on the current device
        _element_kernel[(n_rows,)](
            u, g, x2, w2, labels, row_weight, losses, row_sums,
            n_classes, rate, slope, relative_floor, tiny, math.log2(math.e),
            EUCLIDEAN=euclidean, HARMAX=harmax, GRADIENT=gradient_dtype is not None,
            BLOCK=min(4096, triton.next_power_of_2(n_classes)), num_warps=8,
        )  # fmt: skip
    return (losses, None, None) if gradient_dtype is None else (losses, g, row_sums)
