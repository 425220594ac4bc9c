"""The loss against its oracle. Truth is float64; tolerances follow from n * eps * (||x||^2 + ||w||^2) / d^2, they are
not chosen."""

import pytest
import torch
from torch.nn import functional as F

from harmonic_gpt import HarmonicHead, harmonic_cross_entropy, head_logits
from tests.conftest import HEADS
from tests.model import loss_cases
from tests.model.loss_cases import EXPONENTS, D, N, V, hard_inputs, inputs, naive, ours, run


def test_logits_are_the_definition():
    """softmax(z) is HarMax(d) = d^-n / sum d^-n (paper, section 2)."""
    x, w, _ = inputs()
    d = torch.cdist(x, w)
    n = 5.0
    expected = d**-n / (d**-n).sum(1, keepdim=True)
    torch.testing.assert_close(head_logits(x, w, exponent=n).softmax(1), expected)
    torch.testing.assert_close(head_logits(x, w, exponent=n, normalization="softmax"), -d)
    torch.testing.assert_close(head_logits(x, w, exponent=n, similarity="dot"), n * (x @ w.T).abs().log())
    torch.testing.assert_close(head_logits(x, w, exponent=n, similarity="dot", normalization="softmax"), x @ w.T)


def test_logits_take_leading_batch_dimensions():
    x, w = torch.randn(3, 5, D), torch.randn(3, V, D)
    for similarity, normalization in HEADS:
        options = {"exponent": 4.0, "similarity": similarity, "normalization": normalization}
        each = torch.stack([head_logits(a, b, **options) for a, b in zip(x, w, strict=True)])
        torch.testing.assert_close(head_logits(x, w, **options), each)
        torch.testing.assert_close(head_logits(x, w[0], **options)[0], each[0])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_float64_equals_autograd_through_materialised_logits(head, n, reduction):
    x, w, y = hard_inputs()
    upstream = torch.randn(N, dtype=torch.float64) if reduction == "none" else None
    results = zip(
        run(ours(head, n, reduction), x, w, y, upstream), run(naive(head, n, reduction), x, w, y, upstream), strict=True
    )
    # the row 1e-2 from a center has (||x||^2 + ||w||^2) / d^2 of about 1e4
    tolerance = max(n, 1) * torch.finfo(torch.float64).eps * 1e5
    for got, expected in results:
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["centered", "common offset"])
def test_float32_is_no_worse_than_naive_float32(head, n, shift):
    x, w, y = inputs(torch.float32)
    loss_cases.check_float32(ours, head, n, x + shift, w + shift, y)


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("head", HEADS)
def test_float32_on_a_center_and_on_zero_is_finite(head, n):
    loss_cases.check_finite_on_centers_and_zero(ours, head, n)


@pytest.mark.parametrize("head", HEADS)
def test_gradcheck(head):
    x, w, y = inputs(n=5, v=7, d=3)
    x, w = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ours(head, 6.0, "none")(a, b, y), (x, w))


@pytest.mark.parametrize("n", [1, 28, 768])
def test_invariants_of_the_harmonic_gradient(n):
    """The loss does not see a common translation or scale (MATH, table): exact zeros away from the floor."""
    x, w, y = inputs()
    _, gx, gw = run(ours(HEADS[0], n, "sum"), x, w, y)
    size = gx.abs().sum() + gw.abs().sum()
    assert (gx.sum(0) + gw.sum(0)).abs().max() < 1e-13 * size
    assert ((x * gx).sum() + (w * gw).sum()).abs() < 1e-13 * size


@pytest.mark.usefixtures("small_chunks")
def test_ignored_targets_do_not_count():
    x, w, y = inputs()
    y[5:30] = -100
    kept = y != -100
    loss, gx, gw = run(ours(HEADS[0], 8.0), x, w, y)
    expected, gx_kept, gw_kept = run(ours(HEADS[0], 8.0), x[kept], w, y[kept])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gx[kept], gx_kept)
    torch.testing.assert_close(gw, gw_kept)
    assert (gx[~kept] == 0).all()


def test_no_targets_at_all_is_zero_not_nan():
    x, w, y = inputs()
    for value in run(ours(HEADS[0], 8.0), x, w, torch.full_like(y, -100)):
        assert (value == 0).all()
    empty = harmonic_cross_entropy(x[:0].requires_grad_(), w, y[:0], exponent=8.0)
    assert empty.item() == 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bfloat16_operands_give_float32_distances(head, reduction):
    loss_cases.check_bfloat16_operands(ours, head, reduction)


def test_a_likely_label_loses_no_digits():
    loss_cases.check_a_likely_label_keeps_its_digits(ours)


def test_nan_stays_nan():
    loss_cases.check_nan_stays_nan(ours)


def test_second_and_double_backward_are_refused():
    x, w, y = inputs()
    x.requires_grad_()
    loss = ours(HEADS[0], 8.0)(x, w, y)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        loss.backward()
    each = ours(HEADS[0], 8.0, "none")(x, w, y).sum()
    each.backward(retain_graph=True)
    each.backward()  # recomputes: allowed
    for reduction in ("mean", "none"):
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(ours(HEADS[0], 8.0, reduction)(x, w, y).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.randn(N, D).half().requires_grad_(), "centers": torch.randn(V, D).half()}, "bfloat16"),
        (
            {"hidden_states": torch.zeros(N, D, dtype=torch.long), "centers": torch.zeros(V, D, dtype=torch.long)},
            "float16",
        ),
        ({"impl": "cuda"}, "impl"),
        ({"impl": "triton", "hidden_states": torch.randn(N, D).double()}, "float64"),
        ({"hidden_states": torch.randn(N, D + 1)}, "expected hidden_states"),
        ({"labels": torch.zeros(N + 1, dtype=torch.long)}, "expected hidden_states"),
        ({"labels": torch.full((N,), V)}, f"\\[0, {V}\\)"),
        ({"labels": torch.full((N,), -1)}, "got -1"),
        ({"labels": torch.zeros(N)}, "integer"),
        ({"reduction": "average"}, "reduction"),
        ({"similarity": "cosine"}, "similarity"),
        ({"normalization": "sparsemax"}, "normalization"),
        ({"exponent": 0.0}, "exponent"),
    ],
)
def test_bad_input_is_named(change, message):
    x, w, y = inputs(torch.float32)
    arguments = {"hidden_states": x, "centers": w, "labels": y, "exponent": 8.0} | change
    with pytest.raises(ValueError, match=message):
        harmonic_cross_entropy(**arguments)


@pytest.mark.parametrize("head", HEADS)
def test_module_loss_is_the_cross_entropy_of_its_logits(head):
    module_ = HarmonicHead(D, V, exponent=7.0, similarity=head[0], normalization=head[1], hidden_scale=0.3)
    torch.nn.init.normal_(module_.weight)
    x, y = torch.randn(2, 9, D), torch.randint(0, V, (2, 9))
    logits = module_(x)
    torch.testing.assert_close(module_(x, y), F.cross_entropy(logits.flatten(0, 1), y.flatten()))
    if head != ("dot", "softmax"):
        torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(2, 9), atol=1e-5, rtol=0)
