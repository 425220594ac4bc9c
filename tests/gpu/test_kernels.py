"""The loss on a GPU, with the real kernel: against the float64 oracle on the CPU, and against PyTorch's operators."""

import warnings

import pytest
import torch

from harmonic_gpt import harmonic_cross_entropy
from harmonic_gpt.model import harmonic_kernels
from harmonic_gpt.model.harmonic_loss import head_cross_entropy
from harmonic_gpt.model.heads import HEADS as HEADS_BY_NAME
from tests.conftest import HEADS
from tests.gpu.conftest import DEVICE
from tests.model.loss_cases import EXPONENTS, D, N, V, hard_inputs, inputs, naive, run
from tests.model.test_harmonic_loss_work import FLAGS
from tests.model.test_heads import constants_of, graded

pytestmark = pytest.mark.usefixtures("device")
KERNEL = "triton" if DEVICE == "cuda" else "auto"  # on the CPU, which checks the tests themselves


def on_device(head, n, reduction="mean", impl=KERNEL):
    """A loss of CPU tensors that is computed on the GPU; gradients come back to the CPU."""
    similarity, normalization = head

    def loss(x, w, y):
        return harmonic_cross_entropy(
            x.to(DEVICE), w.to(DEVICE), y.to(DEVICE),
            exponent=n, similarity=similarity, normalization=normalization, reduction=reduction, impl=impl,
        ).cpu()  # fmt: skip

    return loss


def assert_close_to_truth(head, n, x, w, y):
    """No worse than naive float32 on the CPU, and a term of n eps (||x||^2 + ||w||^2) / d^2."""
    truth = run(naive(head, n), x.double(), w.double(), y)
    plain = run(naive(head, n), x, w, y)
    conditioning = ((x.square().sum(1)[:, None] + w.square().sum(1)) / torch.cdist(x, w).square()).max().item()
    for got, naive_value, true_value in zip(run(on_device(head, n), x, w, y), plain, truth, strict=True):
        error, naive_error = ((v.double() - true_value).abs().max() for v in (got, naive_value))
        small = max(n, 1) * torch.finfo(torch.float32).eps * conditioning * true_value.abs().max()
        assert error <= naive_error + 2 * small


def test_the_kernel_is_not_interpreted():
    assert not harmonic_kernels.INTERPRETED


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["centered", "common offset"])
def test_float32(head, n, shift):
    x, w, y = inputs(torch.float32)
    y[::7] = -100
    assert_close_to_truth(head, n, x + shift, w + shift, y)


OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "log_prior": torch.linspace(-2, 1, V)}


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("name", [name for name, head in HEADS_BY_NAME.items() if head.form])
def test_every_head_and_option(name, options):
    """Learned rates and weights: float32 on the GPU is about as near to float64 as float32 on the CPU is."""
    x, w, y = inputs(torch.float32)
    values = constants_of(name, torch.float32)

    def loss_of(device, impl):
        given = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}

        def loss(*leaves):
            x, w, *tensors = (leaf.to(device) for leaf in leaves)
            constants = dict(zip(values, tensors, strict=True))
            return head_cross_entropy(x, w, y.to(device), head=name, impl=impl, **given, **constants).cpu()

        return loss

    leaves = (x, w, *values.values())
    truth = graded(loss_of("cpu", "auto"), *(leaf.double() for leaf in leaves))
    plain = graded(loss_of("cpu", "auto"), *leaves)
    for got, cpu, expected in zip(graded(loss_of(DEVICE, KERNEL), *leaves), plain, truth, strict=True):
        error, cpu_error = ((value - expected).abs().max() for value in (got, cpu))
        assert error <= 3 * cpu_error + 2e-5 * expected.abs().max()


@pytest.mark.parametrize("v", [64, 65, 4096, 5000, 50257])
@pytest.mark.parametrize("head", HEADS)
def test_full_blocks_and_what_is_left_over(head, v):
    assert_close_to_truth(head, 28, *inputs(torch.float32, n=9, v=v, d=32))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_hard_inputs(head, reduction):
    """On a center, on zero, ignored: where the floor acts, all definitions must agree on where it acts."""
    x, w, y = (t.float() if t.is_floating_point() else t for t in hard_inputs())
    # Integer coordinates: products are exact in float32, so that no rounding decides whether the floor acts
    x, w = (x * 4).round(), (w * 4).round()
    y[12] = 8  # the label's center is zero, the hidden state is not
    upstream = torch.rand(N) if reduction == "none" else None
    kernel, operators = (run(on_device(head, 28, reduction, impl), x, w, y, upstream) for impl in (KERNEL, "torch"))
    for a, b in zip(kernel, operators, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_finite_on_centers_and_zero(head, n):
    x, w, y = hard_inputs()
    y[12] = 8
    for value in run(on_device(head, n), x.float(), w.float(), y):
        assert value.isfinite().all()


@pytest.mark.parametrize("impl", [KERNEL, "torch"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_operands_give_float32_distances(head, reduction, impl):
    x, w, y = inputs(torch.float32)
    rounded = [t.bfloat16() for t in (x, w)]
    upstream = torch.rand(N) if reduction == "none" else None
    truth = run(naive(head, 28, reduction), *(t.double() for t in rounded), y, upstream)
    direct = run(on_device(head, 28, reduction, impl), *rounded, y, upstream)
    with torch.autocast(DEVICE, torch.bfloat16):
        automatic = run(on_device(head, 28, reduction, impl), x, w, y, upstream)
    for loss, gx, gw in (direct, automatic):
        torch.testing.assert_close(loss.double(), truth[0], rtol=1e-5, atol=1e-5)
        for got, expected in ((gx, truth[1]), (gw, truth[2])):  # g is rounded to bf16 (2^-9), and so is a bf16 gradient
            assert (got.double() - expected).abs().max() < 2**-7 * expected.abs().max()
    assert automatic[2].dtype == torch.float32
    assert not torch.equal(automatic[2], automatic[2].bfloat16().float())


def test_a_likely_label_loses_no_digits():
    x, w, y = inputs(torch.float32, n=9)
    x = w[y] + 0.08 * torch.randn(9, D)
    truth = run(naive(HEADS[0], 10, "sum"), x.double(), w.double(), y)
    assert truth[0] / 9 < 1e-6
    for got, expected in zip(run(on_device(HEADS[0], 10, "sum"), x, w, y), truth, strict=True):
        assert (got.double() - expected).norm() < 1e-3 * expected.norm()


def test_nan_stays_nan():
    for head in HEADS:
        x, w, y = inputs(torch.float32)
        x[2, 0] = float("nan")
        assert run(on_device(head, 28), x, w, y)[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_and_the_same_bits_each_time(monkeypatch, dtype):
    """Races show as other bits."""
    from harmonic_gpt.model import harmonic_loss_cuda

    x, w, y = inputs(torch.float32, n=700, v=5000, d=64)
    x, w = x.to(dtype), w.to(dtype)
    whole = run(on_device(HEADS[0], 28), x, w, y)
    monkeypatch.setattr(harmonic_loss_cuda, "CUDA_CHUNK_BYTES", 128 * 5056 * 4)
    first = run(on_device(HEADS[0], 28), x, w, y)
    for _ in range(5):
        for a, b in zip(first, run(on_device(HEADS[0], 28), x, w, y), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(whole, first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.parametrize("flag", FLAGS)
def test_float32_is_float32_whatever_the_flags(flag):
    x, w, y = inputs(torch.float32)
    expected = run(on_device(HEADS[0], 28), x, w, y)
    try:
        FLAGS[flag]()
        got = run(on_device(HEADS[0], 28), x, w, y)
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_auto_takes_the_kernel_and_does_not_warn():
    x, w, y = inputs(torch.float32)
    with warnings.catch_warnings(record=True) as seen:
        automatic = run(on_device(HEADS[0], 28, impl="auto"), x, w, y)
    assert not [w.message for w in seen if "Triton" in str(w.message)]
    for a, b in zip(automatic, run(on_device(HEADS[0], 28), x, w, y), strict=True):
        assert torch.equal(a, b)


def test_frozen_centers_and_evaluation():
    x, w, y = inputs(torch.float32)
    loss, gx, _ = run(on_device(HEADS[0], 28), x, w, y)
    moving = x.clone().requires_grad_()
    on_device(HEADS[0], 28)(moving, w, y).backward()
    assert torch.equal(moving.grad, gx)
    with torch.no_grad():
        torch.testing.assert_close(on_device(HEADS[0], 28)(x, w, y), loss)
        torch.testing.assert_close(
            on_device(HEADS[0], 28)(x.half(), w.half(), y),
            on_device(HEADS[0], 28)(x.half().float(), w.half().float(), y),
        )
    assert w.shape == (V, D)
