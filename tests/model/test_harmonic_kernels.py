"""The program of CUDA on the CPU: padded classes, products accumulated in place, and between them the Triton kernel in
Triton's interpreter (which checks no types and shows no races and no speed) or PyTorch's operators."""

import warnings

import pytest
import torch

from harmonic_gpt.model import harmonic_elements, harmonic_kernels
from harmonic_gpt.model import harmonic_loss_cuda as module
from harmonic_gpt.model.harmonic_head import HarmonicHead
from harmonic_gpt.model.harmonic_loss import harmonic_cross_entropy, head_cross_entropy
from harmonic_gpt.model.heads import HEADS as HEADS_BY_NAME
from tests.conftest import HEADS
from tests.model import loss_cases
from tests.model.loss_cases import EXPONENTS, D, V, inputs, ours, run, through_auto
from tests.model.test_heads import constants_of, graded

pytest.importorskip("triton", reason="the triton extra is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # masked lanes, computed by numpy
    pytest.mark.skipif(
        not harmonic_kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1: tests/gpu has the kernel itself"
    ),
]


@pytest.fixture(params=["triton", "torch"])
def cuda_program(request, monkeypatch):
    """CPU tensors take the way of CUDA tensors, in several chunks of several blocks. Returns the calls of the pass."""
    calls = []
    real = {"triton": module._triton_element_pass, "torch": module.torch_element_pass}[request.param]

    def element_pass(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(module, "_triton_element_pass", element_pass)
    monkeypatch.setattr(module, "CUDA_CHUNK_BYTES", 16 * 64 * 4)
    monkeypatch.setattr(module, "CUDA_CHUNK_ROWS", 16)
    monkeypatch.setattr(harmonic_elements, "BLOCK_BYTES", 6 * V * 4)
    monkeypatch.setattr(harmonic_kernels, "MAX_BLOCK", 64)
    yield calls
    assert calls, "the program of CUDA did not run"


def cuda(head, n, reduction="mean"):
    """`ours`, by way of the fixture above."""
    similarity, normalization = head
    return lambda x, w, y: harmonic_cross_entropy(
        x, w, y, exponent=n, similarity=similarity, normalization=normalization, reduction=reduction, impl="triton"
    )


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_no_worse_than_naive_float32(cuda_program, head, n):
    x, w, y = inputs(torch.float32)
    y[::7] = -100
    loss_cases.check_float32(cuda, head, n, x, w, y)
    assert len(cuda_program) == 4  # 53 tokens in chunks of 16


@pytest.mark.parametrize("v", [64, 65, 150, 192])
@pytest.mark.parametrize("head", HEADS)
def test_full_blocks_and_what_is_left_over(cuda_program, head, v):
    x, w, y = inputs(torch.float32, n=20, v=v)
    loss_cases.check_float32(cuda, head, 28, x, w, y)
    for u, g, (_x2, w2, *_), *_ in cuda_program:
        assert u.shape[1] % 64 == 0 and len(w2) == v  # noqa: PT018
        assert g.data_ptr() != u.data_ptr()
        assert (g[:, v:] == 0).all()


@pytest.mark.usefixtures("cuda_program")
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_equals_the_cpu_on_hard_inputs(head, reduction):
    loss_cases.check_hard_inputs(cuda, ours, head, reduction)


@pytest.mark.usefixtures("cuda_program")
@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_finite_on_centers_and_zero(head, n):
    loss_cases.check_finite_on_centers_and_zero(cuda, head, n)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_gradients_and_losses_without_gradients(cuda_program, head):
    # Triton's interpreter cuts a float32 off where a GPU rounds to nearest: each g may differ by 2^-7 of itself
    loss_cases.check_bfloat16_operands(cuda, head, "mean", rounding=2**-6, n_tokens=20)
    assert cuda_program[0][1].dtype == torch.bfloat16
    x, w, y = inputs(torch.float32, n=20)
    x, w = x.bfloat16(), w.bfloat16()
    expected = run(cuda(head, 28), x, w, y)[0]
    with torch.no_grad():
        torch.testing.assert_close(cuda(head, 28)(x, w, y), expected)
    assert cuda_program[-1][1] is None


@pytest.mark.usefixtures("cuda_program")
def test_a_likely_label_loses_no_digits():
    loss_cases.check_a_likely_label_keeps_its_digits(cuda)


@pytest.mark.usefixtures("cuda_program")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("frozen", ["hidden states", "centers"])
def test_a_frozen_operand_changes_nothing_for_the_other(head, frozen):
    x, w, y = inputs(torch.float32, n=20)
    _, gx, gw = run(cuda(head, 8.0), x, w, y)
    moving, expected = (x, gx) if frozen == "centers" else (w, gw)
    moving.requires_grad_()
    cuda(head, 8.0)(x, w, y).backward()
    assert torch.equal(moving.grad, expected)


@pytest.mark.usefixtures("cuda_program")
@pytest.mark.parametrize("name", [name for name in HEADS_BY_NAME if HEADS_BY_NAME[name].form])
def test_a_frozen_number_of_the_head_changes_nothing_for_the_others(name):
    """As when adapters are trained beside a learned exponent that is not."""
    x, w, y = inputs(torch.float32, n=11)
    numbers = constants_of(name, torch.float32)

    def loss_of(x, w, *tensors):
        return head_cross_entropy(x, w, y, head=name, impl="triton", **dict(zip(numbers, tensors, strict=True)))

    frozen = graded(lambda x, w: loss_of(x, w, *numbers.values()), x, w)
    for got, expected in zip(frozen, graded(loss_of, x, w, *numbers.values()), strict=False):
        torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("cuda_program")
def test_no_tokens_at_all():
    x, w, y = inputs(torch.float32)
    for value in run(cuda(HEADS[0], 8.0), x, w, torch.full_like(y, -100)):
        assert (value == 0).all()
    for value in run(cuda(HEADS[0], 8.0), x[:0], w, y[:0]):
        assert (value == 0).all()


@pytest.mark.usefixtures("cuda_program")
def test_nan_stays_nan():
    loss_cases.check_nan_stays_nan(cuda)


OPTIONS = {"log_prior": torch.linspace(-2, 1, V), "label_smoothing": 0.1, "z_loss": 0.01}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, OPTIONS) for name in HEADS_BY_NAME if HEADS_BY_NAME[name].form]
    + [("harmonic", {name: value}) for name, value in OPTIONS.items()]
    + [("lorentz_harmonic", {})],
)
def test_every_head_and_option(cuda_program, name, options):
    """Learned rates and weights, a prior, smoothing and z-loss: float32 against the CPU's program in float64."""
    x, w, y = inputs(torch.float32, n=11)
    y[::5] = -100
    values = constants_of(name, torch.float32)

    def loss_of(impl):
        return lambda x, w, *tensors: head_cross_entropy(
            x, w, y, head=name, impl=impl, **options, **dict(zip(values, tensors, strict=True))
        )

    leaves = (x, w, *values.values())
    truth = graded(loss_of("auto"), *(leaf.double() for leaf in leaves))
    for got, expected in zip(graded(loss_of("triton"), *leaves), truth, strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(isinstance(call[5].rate, torch.Tensor) for call in cuda_program)


def test_the_gradient_of_a_prior_goes_through_torch(monkeypatch):
    def element_pass(*_args, **_options):
        raise AssertionError("the kernel has no gradient of a bias")

    monkeypatch.setattr(harmonic_kernels, "element_pass", element_pass)
    x, w, y = inputs(torch.float32)
    prior = torch.zeros(V)
    got, expected = (
        graded(lambda x, w, p, impl=impl: head_cross_entropy(x, w, y, log_prior=p, impl=impl), x, w, prior)
        for impl in ("triton", "auto")
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.fixture
def broken(monkeypatch):
    """The kernel fails when it is launched, as without a C compiler. Returns a list with an entry per launch."""
    launches = []

    class Kernel:
        def __getitem__(self, grid):
            launches.append(grid)
            raise RuntimeError("Failed to find C compiler.\nPlease specify it via the CC environment variable.")

    monkeypatch.setattr(harmonic_kernels, "_element_kernel", Kernel())
    monkeypatch.setattr(module, "_triton_failed", False)
    return launches


def test_auto_goes_on_without_the_kernel_and_says_so_once(broken):
    x, w, y = inputs(torch.float32)
    with pytest.warns(RuntimeWarning, match="without its Triton kernel .RuntimeError: Failed to find C") as seen:
        losses, gx, gw = through_auto(x, w, y)
    with warnings.catch_warnings(action="error"):
        through_auto(x, w, y)
    assert len(seen) == len(broken) == 1
    expected, ex, ew = run(ours(HEADS[0], 28, "sum"), x, w, y)
    torch.testing.assert_close(losses.sum(), expected)
    torch.testing.assert_close(gx, ex, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gw, ew, rtol=1e-4, atol=1e-5)


def test_auto_without_triton(monkeypatch):
    monkeypatch.setattr(module, "_triton_failed", False)
    monkeypatch.setattr(harmonic_kernels, "triton", None)
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        through_auto(*inputs(torch.float32))


def test_out_of_memory_is_not_a_broken_kernel(monkeypatch):
    def element_pass(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(harmonic_kernels, "element_pass", element_pass)
    monkeypatch.setattr(module, "_triton_failed", False)
    with pytest.raises(torch.OutOfMemoryError):
        through_auto(*inputs(torch.float32))
    assert not module._triton_failed


def test_a_named_implementation_raises(broken):
    x, w, y = inputs(torch.float32)
    head = HarmonicHead(D, V, exponent=28)
    head.weight.data = w
    head.impl = "triton"
    with pytest.raises(RuntimeError, match="Failed to find C compiler"):
        head(x, y)
    head.impl = "torch"
    with warnings.catch_warnings(action="error"):
        torch.testing.assert_close(head(x, y), ours(HEADS[0], 28)(x, w, y))
    assert len(broken) == 1


def test_triton_is_for_cuda(monkeypatch):
    monkeypatch.setattr(harmonic_kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"on CUDA, got torch\.float32 on cpu"):
        cuda(HEADS[0], 28)(*inputs(torch.float32))
