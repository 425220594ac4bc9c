"""The passes between the products of the loss, as one Triton kernel for CUDA.

Its oracle is `harmonic_loss_cuda.torch_element_pass` (tests/model/test_harmonic_kernels.py). One program a row reads
the row's dot products twice, for the normalizer and for g, and writes g once, where torch makes about ten passes. Needs
the `triton` library, which CUDA builds of torch bring along. tests/model/test_compiled_kernels.py compiles every
variant without a GPU. What the symbols mean: harmonic_elements.py, whose formulas these are.
"""

import math
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .harmonic_elements import Asked, Formula, Sides

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
        s, w_scale, w_term, x_term, unit, floor_rate, floor_base,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, LORENTZ: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """Dot products s to (t, h, where the floor acted). t: of `heads.Form`. h: the divisor of dz/du, or for -d its
        reciprocal.

        w_scale: squared norms, or norms for dot products. x_term, w_term: terms of u, x_term and floor_base in units
        of 1 / unit, as u is if HARMAX and EUCLIDEAN.
        """
        u = (w_term * unit + x_term) - s * (2.0 * unit) if EUCLIDEAN else s
        if EUCLIDEAN or HARMAX:
            floor = floor_rate * w_scale + floor_base
            floored = (u if EUCLIDEAN else tl.abs(u)) <= floor  # a NaN is not <= floor: it stays
            u = tl.where(floored, floor, u)
        else:
            floored = s != s
        if LORENTZ:  # u = 2 (cosh d - 1); log1p as Kahan's r log(1 + r) / ((1 + r) - 1)
            half = 0.5 * u
            sinh = tl.sqrt(half * (half + 2.0))
            r = half + sinh
            one_more = 1.0 + r
            d = tl.where(one_more == 1.0, r, tl.log(one_more) * (r / tl.where(one_more == 1.0, 1.0, one_more - 1.0)))
            t = tl.log2(d)
            h = d * sinh
        elif HARMAX:
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
        u_row, w_ptr, w_term_ptr, columns, n_classes, x_term, unit, floor_rate, floor_base,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, LORENTZ: tl.constexpr, MASKED: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """`_terms` of one block of columns of a row."""
        inside = columns < n_classes if MASKED else None
        s = tl.load(u_row + columns, mask=inside)
        w_scale = tl.load(w_ptr + columns, mask=inside) if EUCLIDEAN or HARMAX else s
        w_term = tl.load(w_term_ptr + columns, mask=inside) if LORENTZ else w_scale
        return _terms(
            s, w_scale, w_term, x_term, unit, floor_rate, floor_base, EUCLIDEAN, HARMAX, LORENTZ, FAST
        )  # fmt: skip

    @triton.jit
    def _logits(t, rate, offset, bias_ptr, columns, n_classes, BIAS: tl.constexpr, MASKED: tl.constexpr):
        """z of a block, in base 2 and relative to the label's."""
        z = rate * t - offset
        if BIAS:
            z += tl.load(bias_ptr + columns, mask=columns < n_classes if MASKED else None)
        return z

    @triton.jit
    def _add_block(
        peak, total, dots, t_sum, u_row, w_ptr, w_term_ptr, bias_ptr, columns, n_classes, label, t_label,
        x_term, unit, floor_rate, floor_base, rate, offset,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, LORENTZ: tl.constexpr, BIAS: tl.constexpr,
        SMOOTHING: tl.constexpr, LEARNED: tl.constexpr, MASKED: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """One block of columns into the running maximum (scalar) and sum of exponentials e (BLOCK,); if asked for also
        into the sums of e (t - t_label) and of t - t_label."""
        t, _h, _floored = _block_terms(
            u_row, w_ptr, w_term_ptr, columns, n_classes, x_term, unit, floor_rate, floor_base,
            EUCLIDEAN, HARMAX, LORENTZ, MASKED, FAST,
        )  # fmt: skip
        counted = columns != label
        if MASKED:
            counted = counted & (columns < n_classes)
        z = tl.where(counted, _logits(t, rate, offset, bias_ptr, columns, n_classes, BIAS, MASKED), float("-inf"))
        higher = tl.maximum(peak, tl.max(z, 0))
        shrunk = tl.exp2(peak - higher)
        e = tl.exp2(z - higher)
        if LEARNED or SMOOTHING:
            beyond = tl.where(counted, t - t_label, 0.0)
            if LEARNED:
                dots = dots * shrunk + e * beyond
            if SMOOTHING:
                t_sum += beyond
        return higher, total * shrunk + e, dots, t_sum

    @triton.jit
    def _store_block(
        row_sum, g_row, g_stride, g_label, scale, spread, peak, u_row, w_ptr, w_term_ptr, bias_ptr, columns, n_classes,
        label, x_term, unit, floor_rate, floor_base, rate, offset,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, LORENTZ: tl.constexpr, BIAS: tl.constexpr,
        SMOOTHING: tl.constexpr, MASKED: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        """g of one block of columns, rounded and stored; adds what was stored to row_sum (BLOCK,).

        spread: what label smoothing takes from each class, scaled as g.
        """
        t, h, floored = _block_terms(
            u_row, w_ptr, w_term_ptr, columns, n_classes, x_term, unit, floor_rate, floor_base,
            EUCLIDEAN, HARMAX, LORENTZ, MASKED, FAST,
        )  # fmt: skip
        # As `_add_block` rounds z, so that this is 0 where z is the peak: p loses no digits at large exponents
        below = _logits(t, rate, offset, bias_ptr, columns, n_classes, BIAS, MASKED) - peak
        if HARMAX and not LORENTZ and not SMOOTHING:
            g = scale * tl.exp2(below - t)  # dz/du = slope / u, and |u| = 2^t: the division joins the exponent
            if not EUCLIDEAN:
                g = tl.where(h < 0, -g, g)
        else:
            g = scale * tl.exp2(below)
            if SMOOTHING:
                g -= spread
            if HARMAX:
                g = g / h
            elif EUCLIDEAN:
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
        x_term_ptr, w_term_ptr, bias_ptr, mean_bias_ptr, rate_ptr, rates_ptr, smoothing, z_loss,
        EUCLIDEAN: tl.constexpr, HARMAX: tl.constexpr, LORENTZ: tl.constexpr, BIAS: tl.constexpr,
        SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, LEARNED: tl.constexpr,
        GRADIENT: tl.constexpr, BLOCK: tl.constexpr, FAST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        u_row = u_ptr + row.to(tl.int64) * u_stride
        x_scale = tl.load(x_ptr + row)
        label = tl.load(labels_ptr + row).to(tl.int32)
        s_label, w_label = tl.load(u_row + label), tl.load(w_ptr + label)
        x_term = tl.load(x_term_ptr + row) if LORENTZ else x_scale
        w_term_label = tl.load(w_term_ptr + label) if LORENTZ else w_label
        if LEARNED:
            rate = tl.load(rate_ptr)
            slope = slope * rate
        unit = 1.0
        if EUCLIDEAN:
            # a power of two, so exact, that makes most of u about 1: log2 keeps its digits there
            if HARMAX and not LORENTZ:
                unit = tl.exp2(-tl.floor(tl.log2(tl.maximum(x_scale + w_label, 1e-20))))
            x_term = x_term * unit
            floor_rate = relative_floor * unit
            floor_base = (relative_floor * x_scale + tiny) * unit
        else:
            floor_rate = relative_floor * x_scale
            floor_base = tiny
        t_label, h_label, _floored_label = _terms(
            s_label, w_label, w_term_label, x_term, unit, floor_rate, floor_base, EUCLIDEAN, HARMAX, LORENTZ, FAST
        )
        # All logits are relative to the label's, which is 0: 1 - p_y and the loss stay exact as p_y nears 1
        offset = rate * t_label
        bias_label = 0.0
        if BIAS:
            bias_label = tl.load(bias_ptr + label)
            offset += bias_label
        # Full blocks need no masks, and four floats are one access. What is left over is a loop too, of one round or
        # none: as straight code it would hold its values in registers through the other loops.
        n_full = n_classes // BLOCK * BLOCK
        peak = 0.0
        total = tl.zeros((BLOCK,), tl.float32)  # without the label
        dots = tl.zeros((BLOCK,), tl.float32) if LEARNED else 0.0
        t_sum = tl.zeros((BLOCK,), tl.float32) if SMOOTHING else 0.0
        for start in range(0, n_full, BLOCK):
            peak, total, dots, t_sum = _add_block(
                peak, total, dots, t_sum, u_row, w_ptr, w_term_ptr, bias_ptr, start + tl.arange(0, BLOCK), n_classes,
                label, t_label, x_term, unit, floor_rate, floor_base, rate, offset,
                EUCLIDEAN, HARMAX, LORENTZ, BIAS, SMOOTHING, LEARNED, False, FAST,
            )  # fmt: skip
        for start in range(n_full, n_classes, BLOCK):
            peak, total, dots, t_sum = _add_block(
                peak, total, dots, t_sum, u_row, w_ptr, w_term_ptr, bias_ptr, start + tl.arange(0, BLOCK), n_classes,
                label, t_label, x_term, unit, floor_rate, floor_base, rate, offset,
                EUCLIDEAN, HARMAX, LORENTZ, BIAS, SMOOTHING, LEARNED, True, FAST,
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
        loss = tl.where(e_label > 0.5, log1p, (peak + tl.log2(everything)) / log2_e)
        t_total = 0.0
        if SMOOTHING:
            t_total = tl.sum(t_sum, 0)
            beyond_mean = -rate * t_total / n_classes  # of the label's logit over the mean one
            if BIAS:
                beyond_mean += bias_label - tl.load(mean_bias_ptr)
            loss += smoothing * beyond_mean / log2_e
        more = 0.0  # a - 1 of `harmonic_elements`
        t_absolute = t_label
        if Z_LOSS:
            if EUCLIDEAN and HARMAX and not LORENTZ:
                t_absolute = t_label - tl.log2(unit)
            log_total = (rate * t_absolute + bias_label + peak + tl.log2(everything)) / log2_e
            loss += z_loss * log_total * log_total
            more = 2.0 * z_loss * log_total
        tl.store(losses_ptr + row, loss)
        if GRADIENT:
            weight = tl.load(weight_ptr + row)
            scale = slope * weight * unit / everything
            g_label = -scale * others  # p_y - 1
            spread = 0.0
            if SMOOTHING:
                spread = scale * everything * smoothing / n_classes
                g_label += scale * everything * smoothing - spread
            if Z_LOSS:
                g_label += scale * more * e_label
            if LEARNED:
                along = (1.0 + more) * tl.sum(dots, 0) / everything - smoothing / n_classes * t_total
                if Z_LOSS:
                    along += more * t_absolute
                tl.store(rates_ptr + row, weight * along / log2_e)
            if Z_LOSS:
                scale = scale * (1.0 + more)
            if HARMAX:
                g_label = g_label / h_label
            elif EUCLIDEAN:
                g_label = g_label * h_label
            g_row = g_ptr + row.to(tl.int64) * g_stride
            row_sum = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, n_full, BLOCK):
                row_sum = _store_block(
                    row_sum, g_row, g_stride, g_label, scale, spread, peak, u_row, w_ptr, w_term_ptr, bias_ptr,
                    start + tl.arange(0, BLOCK), n_classes, label, x_term, unit, floor_rate, floor_base, rate, offset,
                    EUCLIDEAN, HARMAX, LORENTZ, BIAS, SMOOTHING, False, FAST,
                )  # fmt: skip
            for start in range(n_full, n_classes, BLOCK):
                row_sum = _store_block(
                    row_sum, g_row, g_stride, g_label, scale, spread, peak, u_row, w_ptr, w_term_ptr, bias_ptr,
                    start + tl.arange(0, BLOCK), n_classes, label, x_term, unit, floor_rate, floor_base, rate, offset,
                    EUCLIDEAN, HARMAX, LORENTZ, BIAS, SMOOTHING, True, FAST,
                )  # fmt: skip
            tl.store(row_sums_ptr + row, tl.sum(row_sum, 0))


def block_size(n_classes: int) -> int:
    """Columns of a block: a power of two, and whole rows of up to `n_classes` padded to a multiple of 64."""
    return min(MAX_BLOCK, max(64, triton.next_power_of_2(n_classes)))


def element_pass(
    u: Tensor,
    g: Tensor | None,
    sides: "Sides",
    labels: Tensor,
    row_weight: Tensor,
    formula: "Formula",
    asked: "Asked",
    *,
    relative_floor: float,
    tiny: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """From dot products to losses and g = row_weight dL/du, in float32: an `ElementPass` of harmonic_loss_cuda.

    Args:
        u (C, W), float32: x.w, of which the first V columns are classes and the others padding (W a multiple of 64).
            Read only.
        g (C, W), float32 or bfloat16: written; padding becomes 0. None: losses only.
        labels (C,) in [0, V), int64. row_weight (C,).
        formula, asked: all but the gradient of a bias, and a linear curve of distances.
        relative_floor, tiny: of `harmonic_logits`.
    Returns: losses (C,); sums of the rounded g over its rows (C,), undefined without g; row_weight dL/drate (C,) if
        asked for.
    Raises: whatever Triton, its compilers or the driver raise; nothing has been written then.
    """
    x2, w2, x_term, w_term = sides
    n_classes, lorentz = w2.shape[0], formula.quantity == "lorentz"
    losses, row_sums = torch.empty_like(x2), torch.empty_like(x2)
    if not formula.euclidean:
        x2, w2 = x2.sqrt(), w2.sqrt()
    # A learned rate is read by the kernel, and its slope is a multiple of it
    learned = formula.rate.float() if isinstance(formula.rate, Tensor) else None
    rate, slope = (formula.rate, formula.slope) if learned is None else (0.0, formula._replace(rate=1.0).slope)
    # Written wherever it could be asked for: a learned rate may be frozen
    rates = torch.empty_like(x2) if learned is not None and g is not None else None
    bias = formula.bias
    unused = losses  # an address that nothing is read from or written to
    with torch.cuda.device(u.device) if u.is_cuda else nullcontext():  # Triton launches on the current device
        _element_kernel[(u.shape[0],)](
            u, u if g is None else g, x2, w2, labels, row_weight, losses, row_sums,
            n_classes, u.stride(0), u.stride(0) if g is None else g.stride(0),
            rate, slope, relative_floor, tiny, math.log2(math.e),
            x_term if lorentz else unused, w_term if lorentz else unused, unused if bias is None else bias,
            unused if bias is None else bias.mean(), unused if learned is None else learned,
            unused if rates is None else rates, formula.label_smoothing, formula.z_loss,
            EUCLIDEAN=formula.euclidean, HARMAX=formula.curve in ("log", "log_arcosh"), LORENTZ=lorentz,
            BIAS=bias is not None, SMOOTHING=formula.label_smoothing > 0, Z_LOSS=formula.z_loss > 0,
            LEARNED=learned is not None, GRADIENT=g is not None, BLOCK=block_size(n_classes), FAST=not INTERPRETED,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return losses, row_sums, rates if asked.rate else None
