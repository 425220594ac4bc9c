"""The chunked loss on the CPU: a chunk of tokens at a time, gradients in the forward pass.

Symbols of the shape comments: N tokens, D hidden size, V classes, C tokens of one chunk.
"""

import math

import torch
from torch import Tensor

from .harmonic_elements import (
    Asked,
    Formula,
    LossAndGradients,
    Needs,
    Sides,
    add_term_gradient,
    element_pass,
    norm_terms,
)
from .harmonic_logits import squared_norms, widened

# Bytes of the one float32 (C, V) buffer of the chunked loss. Every chunk reads and writes all of grad_w once: shorter
# chunks cost time.
CHUNK_BYTES = 104 * 2**20


def chunked(
    x: Tensor, w: Tensor, labels: Tensor, row_weight: Tensor, formula: Formula, needs: Needs
) -> LossAndGradients:
    """`harmonic_loss.losses_and_gradients` of rounded operands; the element passes take rows that the cache holds."""
    gradient_dtype = x.dtype if any(needs) else None  # bf16 operands: g is rounded too, for bf16 products
    x, w = widened(x), widened(w)  # the same values; row_factor x is then not rounded a second time
    x2, w2 = squared_norms(x), squared_norms(w)  # (N,), (V,)
    x_term, w_term = norm_terms(x, x2, formula, 1), norm_terms(w, w2, formula, -1)
    n_tokens, n_classes = x.shape[0], w.shape[0]
    losses = x2.new_empty(n_tokens)
    grad_x = x2.new_empty(x.shape) if needs.x else None
    # The first chunk overwrites it
    grad_w = (x2.new_empty if n_tokens else x2.new_zeros)(w.shape) if needs.w else None
    grad_bias = x2.new_zeros(n_classes) if needs.bias else None
    grad_rate = x2.new_zeros((), dtype=torch.float64) if needs.rate else None
    column_sums = x2.new_zeros(n_classes)  # sum_i g_ij
    most = max(16, CHUNK_BYTES // (n_classes * x.itemsize))
    # of equal length: a short one at the end is slow
    chunk = max(1, math.ceil(n_tokens / max(1, math.ceil(n_tokens / most))))
    buffer = x2.new_empty(chunk, n_classes)

    for start in range(0, n_tokens, chunk):
        rows = slice(start, min(start + chunk, n_tokens))
        u = buffer[: rows.stop - start]
        torch.mm(x[rows], w.mT, out=u)
        sides = Sides(x2[rows], w2, x_term[rows], w_term)
        asked = Asked(needs.rate, grad_bias, column_sums if needs.w else None)
        losses[rows], g, row_factor, row_sums, rates = element_pass(
            u, sides, labels[rows], row_weight[rows], formula, gradient_dtype, asked
        )
        if g is None or row_factor is None or row_sums is None:  # without gradients
            continue
        if grad_rate is not None and rates is not None:
            grad_rate += rates.sum(dtype=torch.float64)
        # Row and column sums are of the same rounded g as the products: its rounding then multiplies (x - w), not w
        g = widened(g)
        if grad_x is not None:
            torch.mm(g, w, out=grad_x[rows])
            if formula.euclidean:
                add_term_gradient(grad_x[rows].mul_(-2), x[rows], row_sums, formula, 1)
            grad_x[rows].mul_(row_factor[:, None])
        if grad_w is not None:
            sign = -2 if formula.euclidean else 1
            grad_w.addmm_(g.mT, x[rows] * row_factor[:, None], beta=0 if start == 0 else 1, alpha=sign)
    if grad_w is not None and formula.euclidean:
        add_term_gradient(grad_w, w, column_sums, formula, -1)
    return LossAndGradients(losses, grad_x, grad_w, grad_bias, grad_rate)
