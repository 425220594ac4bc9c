"""Inputs of the loss, the loss two ways (ours, and through materialised logits), and what every way of computing it has
to pass: on the CPU, by the program of CUDA on the CPU, and on a GPU.

`loss_of` of a check: (head, exponent, reduction) -> a loss of (x, w, y), as `ours` and `naive`.
"""

import torch
from torch.nn import functional as F

from harmonic_gpt import harmonic_cross_entropy, head_logits
from harmonic_gpt.model import harmonic_loss_cuda
from harmonic_gpt.model.harmonic_elements import Formula, Needs
from tests.conftest import HEADS

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


def check_float32(loss_of, head, n, x, w, y):
    """No worse than naive float32, and a term of n eps (||x||^2 + ||w||^2) / d^2."""
    truth = run(naive(head, n), x.double(), w.double(), y)
    plain = run(naive(head, n), x, w, y)
    conditioning = ((x.square().sum(1)[:, None] + w.square().sum(1)) / torch.cdist(x, w).square()).max().item()
    for got, naive_value, true_value in zip(run(loss_of(head, n), x, w, y), plain, truth, strict=True):
        error, naive_error = ((v.double() - true_value).abs().max() for v in (got, naive_value))
        small = max(n, 1) * torch.finfo(torch.float32).eps * conditioning * true_value.abs().max()
        assert error <= naive_error + 2 * small


def check_bfloat16_operands(loss_of, head, reduction, device="cpu", rounding=2**-7, n_tokens=N):
    """bf16 inputs, and float32 ones under autocast, have the float64 loss of the rounded operands: no distance is bf16.

    rounding: of the gradients, relative to the largest. g is rounded to bf16 (2^-9), and so is a bf16 gradient.
    """
    x, w, y = inputs(torch.float32, n=n_tokens)
    rounded = [t.bfloat16() for t in (x, w)]
    upstream = torch.rand(n_tokens) if reduction == "none" else None
    truth = run(naive(head, 28, reduction), *(t.double() for t in rounded), y, upstream)
    direct = run(loss_of(head, 28, reduction), *rounded, y, upstream)
    with torch.autocast(device, torch.bfloat16):
        automatic = run(loss_of(head, 28, reduction), x, w, y, upstream)
    for loss, gx, gw in (direct, automatic):
        torch.testing.assert_close(loss.double(), truth[0], rtol=1e-5, atol=1e-5)
        for got, expected in ((gx, truth[1]), (gw, truth[2])):
            assert (got.double() - expected).abs().max() < rounding * expected.abs().max()
    assert direct[0].dtype == automatic[0].dtype == torch.float32
    assert direct[1].dtype == torch.bfloat16
    assert automatic[1].dtype == torch.float32
    assert not torch.equal(automatic[2], automatic[2].bfloat16().float())  # float32 parameters get float32 gradients


def check_hard_inputs(loss_of, other_loss_of, head, reduction):
    """On a center, on zero, ignored: where the floor acts, all definitions must agree on where it acts."""
    x, w, y = (t.float() if t.is_floating_point() else t for t in hard_inputs())
    # Integer coordinates: products are exact in float32, so that no rounding decides whether the floor acts
    x, w = (x * 4).round(), (w * 4).round()
    y[12] = 8  # the label's center is zero, the hidden state is not
    upstream = torch.rand(N) if reduction == "none" else None
    these, others = (run(loss(head, 28, reduction), x, w, y, upstream) for loss in (loss_of, other_loss_of))
    for a, b in zip(these, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def check_finite_on_centers_and_zero(loss_of, head, n):
    x, w, y = hard_inputs()
    y[12] = 8
    for value in run(loss_of(head, n), x.float(), w.float(), y):
        assert value.isfinite().all()


def check_a_likely_label_keeps_its_digits(loss_of):
    """p_y = 1 - 2e-7 and less: 1 - p_y and the loss come from the other classes, not from a difference to 1 (float32's
    epsilon is 6e-8)."""
    x, w, y = inputs(torch.float32, n=9)
    x = w[y] + 0.08 * torch.randn(9, D)
    truth = run(naive(HEADS[0], 10, "sum"), x.double(), w.double(), y)
    assert truth[0] / 9 < 1e-6
    for got, expected in zip(run(loss_of(HEADS[0], 10, "sum"), x, w, y), truth, strict=True):
        assert (got.double() - expected).norm() < 1e-3 * expected.norm()


def check_nan_stays_nan(loss_of):
    for head in HEADS:
        for row in (0, 2):
            x, w, y = inputs(torch.float32, n=3)
            x[row] = float("nan")
            assert run(loss_of(head, 28), x, w, y)[0].isnan()
