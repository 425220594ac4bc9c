"""The Triton kernel, interpreted on the CPU, against the torch version. The interpreter shows no races and no speed."""

import pytest
import torch

from harmonic_gpt.model import harmonic_kernels
from harmonic_gpt.model import harmonic_loss as module
from tests.conftest import HEADS
from tests.model.test_harmonic_loss import EXPONENTS, N, V, hard_inputs, inputs, naive, ours, run

pytest.importorskip("triton", reason="the triton extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # masked lanes, computed by numpy


@pytest.fixture
def interpreted(monkeypatch):
    """Every chunk goes through the kernel; returns how often it did."""
    calls = []

    def element_pass(*args, **options):
        calls.append(args)
        return harmonic_kernels.element_pass(*args, **options)

    monkeypatch.setattr(module, "_kernels", lambda x: element_pass if x.dtype != torch.float64 else None)
    monkeypatch.setattr(module, "CHUNK_BYTES", 20 * V * 4)
    yield calls
    assert calls, "the kernel did not run"


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_no_worse_than_naive_float32(interpreted, head, n):
    x, w, y = inputs(torch.float32)
    y[::7] = -100
    truth = run(naive(head, n), x.double(), w.double(), y)
    plain = run(naive(head, n), x, w, y)
    conditioning = ((x.square().sum(1)[:, None] + w.square().sum(1)) / torch.cdist(x, w).square()).max().item()
    for got, naive_value, true_value in zip(run(ours(head, n), x, w, y), plain, truth, strict=True):
        error, naive_error = ((v.double() - true_value).abs().max() for v in (got, naive_value))
        small = max(n, 1) * torch.finfo(torch.float32).eps * conditioning * true_value.abs().max()
        assert error <= naive_error + 2 * small


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_equals_torch_on_hard_inputs(interpreted, monkeypatch, head, reduction):
    """On a center, on zero, ignored: where the floor acts, both definitions must agree on where it acts."""
    x, w, y = (t.float() if t.is_floating_point() else t for t in hard_inputs())
    # Integer coordinates: products are exact in float32, so that no rounding decides whether the floor acts
    x, w = (x * 4).round(), (w * 4).round()
    upstream = torch.rand(N) if reduction == "none" else None
    kernel = run(ours(head, 28, reduction), x, w, y, upstream)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_kernels", lambda x: None)
        torch_ = run(ours(head, 28, reduction), x, w, y, upstream)
    for a, b in zip(kernel, torch_, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_gradients_and_losses_without_gradients(interpreted, monkeypatch, head):
    x, w, y = inputs(torch.float32)
    x, w = x.bfloat16(), w.bfloat16()
    kernel = run(ours(head, 28), x, w, y)
    with torch.no_grad():
        torch.testing.assert_close(ours(head, 28)(x, w, y), kernel[0])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_kernels", lambda x: None)
        torch_ = run(ours(head, 28), x, w, y)
    torch.testing.assert_close(kernel[0], torch_[0], rtol=1e-5, atol=1e-5)
    # Triton's interpreter cuts a float32 off where a GPU rounds to nearest: each g may differ by 2^-7 of itself, and
    # the gradient, itself bfloat16, by as much again
    for a, b in zip(kernel[1:], torch_[1:], strict=True):
        assert (a.float() - b.float()).abs().max() <= 2**-6 * b.float().abs().max()


def test_nan_stays_nan(interpreted):
    for head in HEADS:
        for row in (0, 2):
            x, w, y = inputs(torch.float32)
            x[row] = float("nan")
            assert run(ours(head, 28), x, w, y)[0].isnan()
