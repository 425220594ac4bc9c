"""Inputs of the loss, and the loss two ways: ours, and through materialised logits."""

import torch
from torch.nn import functional as F

from harmonic_gpt import harmonic_cross_entropy, head_logits
from harmonic_gpt.model import harmonic_loss_cuda
from harmonic_gpt.model.harmonic_elements import Formula, Needs

N, V, D = 53, 37, 11  # multiples of nothing
EXPONENTS = [1, 28, 56, 768, 1536]


def inputs(dtype=torch.float64, n=N, v=V, d=D):
    return torch.randn(n, d, dtype=dtype), torch.randn(v, d, dtype=dtype), torch.randint(0, v, (n,))


def hard_inputs():
    """Rows on a center, zero rows, both zero, ignored targets, rows close to a center."""
    x, w, y = inputs()
    x[3], y[3] = w[5], 5
    x[4], y[4] = w[5], 6
    x[7], w[8], y[7] = 0, 0, 8
    x[9] = 0
    x[11] = w[2] + 1e-2 * torch.randn(D, dtype=torch.float64)
    y[::10] = -100
    return x, w, y


def run(loss_of, x, w, y, upstream=None):
    """(loss, grad_x, grad_w) of a loss function of (x, w, y)."""
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    loss = loss_of(x, w, y)
    ((loss * upstream).sum() if upstream is not None else loss).backward()
    return loss.detach(), x.grad, w.grad


def ours(head, n, reduction="mean"):
    similarity, normalization = head
    return lambda x, w, y: harmonic_cross_entropy(
        x, w, y, exponent=n, similarity=similarity, normalization=normalization, reduction=reduction
    )


def naive(head, n, reduction="mean"):
    """Materialised logits and torch's own cross-entropy, differentiated by autograd."""
    similarity, normalization = head
    return lambda x, w, y: F.cross_entropy(
        head_logits(x, w, exponent=n, similarity=similarity, normalization=normalization), y, reduction=reduction
    )


def through_auto(x, w, y):
    """Losses and gradients as impl="auto" computes them for CUDA tensors."""
    weight, formula = torch.ones(len(y)), Formula("squared_distance", "log", -14.0)
    needs, element_pass = Needs(True, True), harmonic_loss_cuda._auto_element_pass
    return harmonic_loss_cuda.chunked_cuda(x, w, y, weight, formula, needs, element_pass)[:3]
