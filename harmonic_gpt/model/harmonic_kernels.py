"""The passes between the products of the loss, as one Triton kernel for CUDA.

Its oracle is `harmonic_loss.torch_element_pass` (tests/model/test_harmonic_kernels.py). One program a row reads the
row's dot products twice, for the normalizer and for g, and writes g once, where torch makes about ten passes. Needs
the `triton` library, which CUDA builds of torch bring along. tests/model/test_compiled_kernels.py compiles every
variant without a GPU.
"""

import math
import os
from contextlib import nullcontext

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice
except ImportError:  # CPU builds of torch
    triton = None

# Columns that a program works on at a time, and its warps: 16 floats a thread
MAX_BLOCK = 4096
NUM_WARPS = 8
# Triton's interpreter, for tests on the CPU: chosen by the environment when the kernels below are defined
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

if triton is not None:

    @triton.jit
    def _terms(
        s, w_scale, x_term, unit, floor_rate, floor_base,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """Dot products s to (t, h, where the floor acted). t: of `harmonic_loss._form`. h: u, or 1 / d for its head.

        w_scale, x_term: squared norms, or norms for dot products. u is in units of 1 / unit if HARMAX and EUCLIDEAN.
        """
        u = (w_scale * unit + x_term) - s * (2.0 * unit) if EUCLIDEAN else s
        if EUCLIDEAN or HARMAX:
            floor = floor_rate * w_scale + floor_base
            floored = (u if EUCLIDEAN else tl.abs(u)) <= floor  # a NaN is not <= floor: it stays
            u = tl.where(floored, floor, u)
        else:
            floored = s != s
        if HARMAX:
            positive = u if EUCLIDEAN else tl.abs(u)
            # The fast one is a single instruction, exact to 2^-22: absolute between 0.5 and 2, relative elsewhere. The
            # interpreter lacks it.
            t = libdevice.fast_log2f(positive) if FAST else tl.log2(positive)
            h = u
        elif EUCLIDEAN:
            h = tl.rsqrt(u)
            t = u * h
        else:
            t = u
            h = u
        return t, h, floored

    @triton.jit
    def _block_terms(
        u_row, w_ptr, columns, n_classes, x_term, unit, floor_rate, floor_base,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, MASKED: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """`_terms` of one block of columns of a row."""
        inside = columns < n_classes if MASKED else None
        s = tl.load(u_row + columns, mask=inside)
        w_scale = tl.load(w_ptr + columns, mask=inside) if EUCLIDEAN or HARMAX else s
        return _terms(s, w_scale, x_term, unit, floor_rate, floor_base, EUCLIDEAN, HARMAX, FAST)

    @triton.jit
    def _add_block(
        peak, total, u_row, w_ptr, columns, n_classes, label, x_term, unit, floor_rate, floor_base, rate, offset,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, MASKED: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """One block of columns into the running maximum (scalar) and sum of exponentials (BLOCK,)."""
        t, _h, _floored = _block_terms(
            u_row, w_ptr, columns, n_classes, x_term, unit, floor_rate, floor_base, EUCLIDEAN, HARMAX, MASKED, FAST
        )
        counted = columns != label
        if MASKED:
            counted = counted & (columns < n_classes)
        z = tl.where(counted, rate * t - offset, float("-inf"))
        higher = tl.maximum(peak, tl.max(z, 0))
        return higher, total * tl.exp2(peak - higher) + tl.exp2(z - higher)

    @triton.jit
    def _store_block(
        row_sum, g_row, g_stride, g_label, scale, peak, u_row, w_ptr, columns, n_classes, label,
        x_term, unit, floor_rate, floor_base, rate, offset,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, MASKED: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """g of one block of columns, rounded and stored; adds what was stored to row_sum (BLOCK,)."""
        t, h, floored = _block_terms(
            u_row, w_ptr, columns, n_classes, x_term, unit, floor_rate, floor_base, EUCLIDEAN, HARMAX, MASKED, FAST
        )
        # As `_add_block` rounds z, so that this is 0 where z is the peak: p loses no digits at large exponents
        below = (rate * t - offset) - peak
        if HARMAX:
            g = scale * tl.exp2(below - t)  # dz/du = slope / u, and |u| = 2^t: the division joins the exponent
            if not EUCLIDEAN:
                g = tl.where(h < 0, -g, g)
        else:
            g = scale * tl.exp2(below)
            if EUCLIDEAN:
                g = g * h
        g = tl.where(columns == label, g_label, g)
        if EUCLIDEAN or HARMAX:
            g = tl.where(floored, 0.0, g)
        if MASKED:
            g = tl.where(columns < n_classes, g, 0.0)  # the columns that pad a row to its stride
        rounded = g.to(g_row.dtype.element_ty)
        tl.store(g_row + columns, rounded, mask=columns < g_stride if MASKED else None)
        return row_sum + rounded.to(tl.float32)

    @triton.jit
    def _element_kernel(
        u_ptr, g_ptr, x_ptr, w_ptr, labels_ptr, weight_ptr, losses_ptr, row_sums_ptr,
        n_classes, u_stride, g_stride, rate, slope, relative_floor, tiny, log2_e,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        u_row = u_ptr + row.to(tl.int64) * u_stride
        x_scale = tl.load(x_ptr + row)
        label = tl.load(labels_ptr + row).to(tl.int32)
        s_label, w_label = tl.load(u_row + label), tl.load(w_ptr + label)
        unit = 1.0
        if EUCLIDEAN:
            if HARMAX:  # a power of two, so exact, that makes most of u about 1: log2 keeps its digits there
                unit = tl.exp2(-tl.floor(tl.log2(tl.maximum(x_scale + w_label, 1e-20))))
            x_term = x_scale * unit
            floor_rate = relative_floor * unit
            floor_base = (relative_floor * x_scale + tiny) * unit
        else:
            x_term = x_scale
            floor_rate = relative_floor * x_scale
            floor_base = tiny
        t_label, h_label, _floored_label = _terms(
            s_label, w_label, x_term, unit, floor_rate, floor_base, EUCLIDEAN, HARMAX, FAST
        )
        # All logits are relative to the label's, which is 0: 1 - p_y and the loss stay exact as p_y nears 1
        offset = rate * t_label
        # Full blocks need no masks, and four floats are one access. What is left over is a loop too, of one round or
        # none: as straight code it would hold its values in registers through the other loops.
        n_full = n_classes // BLOCK * BLOCK
        peak = 0.0
        total = tl.zeros((BLOCK,), tl.float32)  # without the label
        for start in range(0, n_full, BLOCK):
            peak, total = _add_block(
                peak, total, u_row, w_ptr, start + tl.arange(0, BLOCK), n_classes, label,
                x_term, unit, floor_rate, floor_base, rate, offset, EUCLIDEAN, HARMAX, False, FAST,
            )  # fmt: skip
        for start in range(n_full, n_classes, BLOCK):
            peak, total = _add_block(
                peak, total, u_row, w_ptr, start + tl.arange(0, BLOCK), n_classes, label,
                x_term, unit, floor_rate, floor_base, rate, offset, EUCLIDEAN, HARMAX, True, FAST,
            )  # fmt: skip
        others = tl.sum(total, 0)
        e_label = tl.exp2(-peak)
        everything = others + e_label
        # log1p(r) = r log(1 + r) / ((1 + r) - 1) in floating point (Kahan), for a label that is likely
        ratio = others / tl.where(e_label > 0.5, e_label, 1.0)
        one_more = 1.0 + ratio
        log1p = tl.where(
            one_more == 1.0, ratio, tl.log(one_more) * (ratio / tl.where(one_more == 1.0, 1.0, one_more - 1.0))
        )
        tl.store(losses_ptr + row, tl.where(e_label > 0.5, log1p, (peak + tl.log2(everything)) / log2_e))
        if GRADIENT:
            scale = slope * tl.load(weight_ptr + row) * unit / everything
            g_label = -scale * others  # p_y - 1
            if HARMAX:
                g_label = g_label / h_label
            elif EUCLIDEAN:
                g_label = g_label * h_label
            g_row = g_ptr + row.to(tl.int64) * g_stride
            row_sum = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, n_full, BLOCK):
                row_sum = _store_block(
                    row_sum, g_row, g_stride, g_label, scale, peak, u_row, w_ptr, start + tl.arange(0, BLOCK),
                    n_classes, label, x_term, unit, floor_rate, floor_base, rate, offset,
                    EUCLIDEAN, HARMAX, False, FAST,
                )  # fmt: skip
            for start in range(n_full, n_classes, BLOCK):
                row_sum = _store_block(
                    row_sum, g_row, g_stride, g_label, scale, peak, u_row, w_ptr, start + tl.arange(0, BLOCK),
                    n_classes, label, x_term, unit, floor_rate, floor_base, rate, offset,
                    EUCLIDEAN, HARMAX, True, FAST,
                )  # fmt: skip
            tl.store(row_sums_ptr + row, tl.sum(row_sum, 0))


def block_size(n_classes: int) -> int:
    """Columns of a block: a power of two, and whole rows of up to `n_classes` padded to a multiple of 64."""
    return min(MAX_BLOCK, max(64, triton.next_power_of_2(n_classes)))


def element_pass(
    u: Tensor,
    g: Tensor | None,
    x2: Tensor,
    w2: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    *,
    euclidean: bool,
    harmax: bool,
    rate: float,
    slope: float,
    relative_floor: float,
    tiny: float,
) -> tuple[Tensor, Tensor]:
    """From dot products to losses and g = row_weight (p - onehot) dz/du, in float32.

    Args:
        u (C, W), float32: x.w, of which the first V columns are classes and the others padding (W a multiple of 64).
            Read only.
        g (C, W), float32 or bfloat16: written; padding becomes 0. None: losses only.
        x2 (C,), w2 (V,): squared norms. labels (C,) in [0, V), int64. row_weight (C,).
        rate, slope: of `harmonic_loss._form`. relative_floor, tiny: of `harmonic_logits`.
    Returns: losses (C,); sums of the rounded g over its rows (C,), undefined without g.
    Raises: whatever Triton, its compilers or the driver raise; nothing has been written then.
    """
    losses, row_sums = torch.empty_like(x2), torch.empty_like(x2)
    if not euclidean:
        x2, w2 = x2.sqrt(), w2.sqrt()
    with torch.cuda.device(u.device) if u.is_cuda else nullcontext():  # Triton launches on the current device
        _element_kernel[(u.shape[0],)](
            u, u if g is None else g, x2, w2, labels, row_weight, losses, row_sums,
            w2.shape[0], u.stride(0), u.stride(0) if g is None else g.stride(0),
            rate, slope, relative_floor, tiny, math.log2(math.e),
            EUCLIDEAN=euclidean, HARMAX=harmax, GRADIENT=g is not None, BLOCK=block_size(w2.shape[0]),
            FAST=not INTERPRETED, num_warps=NUM_WARPS,
        )  # fmt: skip
    return losses, row_sums
