"""The loss on a GPU, with the real kernel: against the float64 oracle on the CPU, and against PyTorch's operators."""

import warnings
from functools import partial

import pytest
import torch

from harmonic_gpt import harmonic_cross_entropy
from harmonic_gpt.model import harmonic_kernels
from harmonic_gpt.model.harmonic_loss import head_cross_entropy
from harmonic_gpt.model.heads import HEADS as HEADS_BY_NAME
from tests.conftest import HEADS
from tests.gpu.conftest import DEVICE
from tests.model import loss_cases
from tests.model.loss_cases import EXPONENTS, D, V, inputs, run
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


def test_the_kernel_is_not_interpreted():
    assert not harmonic_kernels.INTERPRETED


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["centered", "common offset"])
def test_float32(head, n, shift):
    x, w, y = inputs(torch.float32)
    y[::7] = -100
    loss_cases.check_float32(on_device, head, n, x + shift, w + shift, y)


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


@pytest.mark.parametrize("name", [name for name, head in HEADS_BY_NAME.items() if head.form])
def test_a_frozen_number_of_the_head_changes_nothing_for_the_others(name):
    x, w, y = inputs(torch.float32)
    numbers = constants_of(name, torch.float32)

    def loss_of(x, w, *tensors):
        constants = {key: tensor.to(DEVICE) for key, tensor in zip(numbers, tensors, strict=True)}
        x, w, labels = (tensor.to(DEVICE) for tensor in (x, w, y))
        return head_cross_entropy(x, w, labels, head=name, impl=KERNEL, **constants).cpu()

    frozen = graded(lambda x, w: loss_of(x, w, *numbers.values()), x, w)
    for got, expected in zip(frozen, graded(loss_of, x, w, *numbers.values()), strict=False):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("v", [64, 65, 4096, 5000, 50257])
@pytest.mark.parametrize("head", HEADS)
def test_full_blocks_and_what_is_left_over(head, v):
    loss_cases.check_float32(on_device, head, 28, *inputs(torch.float32, n=9, v=v, d=32))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_hard_inputs(head, reduction):
    loss_cases.check_hard_inputs(on_device, partial(on_device, impl="torch"), head, reduction)


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_finite_on_centers_and_zero(head, n):
    loss_cases.check_finite_on_centers_and_zero(on_device, head, n)


@pytest.mark.parametrize("impl", [KERNEL, "torch"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_operands_give_float32_distances(head, reduction, impl):
    loss_cases.check_bfloat16_operands(partial(on_device, impl=impl), head, reduction, DEVICE)


def test_a_likely_label_loses_no_digits():
    loss_cases.check_a_likely_label_keeps_its_digits(on_device)


def test_nan_stays_nan():
    loss_cases.check_nan_stays_nan(on_device)


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
