"""Every head of `heads.HEADS`, with all that the loss takes: against its own formula, pair by pair, in float64."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from harmonic_gpt import HarmonicGPT2ForCausalLM, HarmonicHead, head_cross_entropy, head_logits
from harmonic_gpt.model import harmonic_elements, harmonic_loss, harmonic_loss_cpu, heads
from harmonic_gpt.model.harmonic_logits import pair_logits
from harmonic_gpt.model.heads import HEADS, PAIRS
from harmonic_gpt.run_config import PAIRS as CONFIG_PAIRS
from tests.aligned import aligned
from tests.model.loss_cases import EXPONENTS, D, N, V, hard_inputs, inputs

PRODUCT = [name for name, head in HEADS.items() if head.form]
NEW = [name for name in PRODUCT if name not in PAIRS.values()]  # the four have test_harmonic_loss.py
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.3, "z_loss": 0.1}]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(harmonic_loss_cpu, "CHUNK_BYTES", 20 * V * 8)
    monkeypatch.setattr(harmonic_elements, "BLOCK_BYTES", 6 * V * 8)
    monkeypatch.setattr(harmonic_loss, "PAIRS_BYTES", 10 * V * D * 4)


def constants_of(name: str, dtype=torch.float64, width=D, **numbers) -> dict[str, torch.Tensor | float]:
    """All that a head can learn, as tensors; weights near where they start."""
    head = HEADS[name]
    values = {
        key: torch.tensor([numbers.get(key, constant.default(width))], dtype=dtype)
        for key, constant in head.constants.items()
        if constant.learnable
    }
    for key, weight in head.weights.items():
        start = weight.start(width, {key: constant.default(width) for key, constant in head.constants.items()})
        values[key] = (start + 0.1 * torch.randn_like(start)).to(dtype)
    return values


def formula_loss(name, x, w, y, values, log_prior, weights, reduction, *, label_smoothing=0.0, z_loss=0.0):
    """The loss written down again, on the formula's logits."""
    z = pair_logits(HEADS[name], x, w, HEADS[name].values(w.shape[1], values), log_prior)
    kept = (y != -100).to(z.dtype)
    log_p = z.log_softmax(1)
    target = F.one_hot(y.clamp_min(0), z.shape[1]).to(z.dtype) * (1 - label_smoothing) + label_smoothing / z.shape[1]
    losses = -(target * log_p).sum(1) + z_loss * z.logsumexp(1) ** 2
    losses = losses * kept * weights
    return losses.sum() / (kept * weights).sum() if reduction == "mean" else losses


def graded(loss_of, *leaves, upstream=None):
    """(loss, gradient of each leaf) of a loss function of the leaves."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    loss = loss_of(*leaves)
    (loss if upstream is None else (loss * upstream).sum()).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_is_the_formula(name, x, w, y, reduction, options):
    values, log_prior = constants_of(name), torch.randn(V, dtype=torch.float64)
    weights, upstream = torch.rand(N, dtype=torch.float64), torch.randn(N, dtype=torch.float64)

    def ours(x, w, log_prior, *tensors):
        return head_cross_entropy(
            x, w, y, head=name, log_prior=log_prior, token_weights=weights, reduction=reduction, **options,
            **dict(zip(values, tensors, strict=True)),
        )  # fmt: skip

    def expected(x, w, log_prior, *tensors):
        values_now = dict(zip(values, tensors, strict=True))
        return formula_loss(name, x, w, y, values_now, log_prior, weights, reduction, **options)

    leaves = (x, w, log_prior, *values.values())
    upstream = upstream if reduction == "none" else None
    results = zip(graded(ours, *leaves, upstream=upstream), graded(expected, *leaves, upstream=upstream), strict=True)
    for got, truth in results:
        torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-11 * truth.abs().max().item())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_every_gradient_are_the_formulas(name, reduction):
    """Hidden states, centers, prior, every constant and weight; ignored targets, weights of tokens."""
    x, w, y = inputs()
    y[::10] = -100
    for options in OPTIONS:
        assert_is_the_formula(name, x, w, y, reduction, options)


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_the_formula(name):
    x, w, _ = inputs()
    values, log_prior = constants_of(name), torch.randn(V, dtype=torch.float64)
    logits = head_logits(x.view(1, N, D), w, head=name, log_prior=log_prior, **values)
    expected = torch.stack([log_prior + HEADS[name].logit(row, w, HEADS[name].values(D, values)) for row in x])
    torch.testing.assert_close(logits, expected[None], rtol=1e-10, atol=1e-10)


def test_formulas_are_the_published_ones():
    """Of heads that the loss computes by their formula: against numpy's own words."""
    x, w = (rows.numpy() for rows in inputs()[:2])
    difference, total = abs(x[:, None] - w), abs(x[:, None]) + abs(w)

    def sigmoid(rows):
        return 1 / (1 + torch.from_numpy(-rows).exp().numpy())

    distances = {
        "manhattan": difference.sum(2),
        "minkowski": (difference**3).sum(2) ** (1 / 3),
        "chebyshev": difference.max(2),
        "canberra": (difference / (total + 1e-4)).sum(2),
        "bray_curtis": difference.sum(2) / (abs((x[:, None] + w).sum(2)) + 1e-3),
        "hamming": abs(sigmoid(x)[:, None] - sigmoid(w)).sum(2),
    }
    assert set(distances) == set(HEADS) - set(PRODUCT)
    for name, d in distances.items():
        logits = head_logits(torch.from_numpy(x), torch.from_numpy(w), head=name, exponent=5.0)
        torch.testing.assert_close(logits, -5 * torch.from_numpy(d).log(), rtol=1e-12, atol=1e-12)


def test_lorentz_distance_is_the_textbooks():
    """arcosh of minus the Lorentz product; curvature c is the distance on the hyperboloid scaled by sqrt(c)."""
    x, w, _ = inputs()
    for c in (1.0, 0.3):
        a, b = x * math.sqrt(c), w * math.sqrt(c)
        product = (a @ b.T) - torch.sqrt((1 + (a * a).sum(1))[:, None] * (1 + (b * b).sum(1)))
        logits = head_logits(x, w, head="lorentz_harmonic", exponent=1.0, curvature=c)
        torch.testing.assert_close((-logits).exp(), torch.acosh(-product), rtol=1e-9, atol=1e-9)


def test_short_hyperbolic_distances_keep_their_digits():
    """At 1e-3 from the origin cosh d - 1 is 1e-6, and float32 keeps one digit of cosh d."""
    x, w, y = inputs(torch.float32)
    x, w = 1e-3 * x, 1e-3 * w
    options = {"head": "lorentz_harmonic", "exponent": 28.0}
    exact = head_logits(x.double(), w.double(), **options)
    torch.testing.assert_close(head_logits(x, w, **options).double(), exact, rtol=1e-5, atol=2e-3)
    loss = head_cross_entropy(x, w, y, **options).double()
    torch.testing.assert_close(loss, F.cross_entropy(exact, y), rtol=1e-4, atol=0)


def test_unit_rows_can_be_differentiated_twice():
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(heads.unit, rows)
    assert torch.autograd.gradgradcheck(heads.unit, rows)
    torch.testing.assert_close(torch.func.vmap(heads.unit)(rows), F.normalize(rows))
    zero = torch.zeros(1, 3, requires_grad=True)  # has no direction
    heads.unit(zero).sum().backward()
    assert (zero.grad == 0).all()


def test_a_metric_starts_at_the_identity():
    x, w, _ = inputs()
    for name in ("mahalanobis_diagonal", "mahalanobis_low_rank", "mahalanobis_full"):
        head = HarmonicHead(D, V, head=name, constants={"exponent": 7.0}).double()
        head.weight.data = w
        torch.testing.assert_close(head(x), head_logits(x, w, exponent=7.0).log_softmax(-1))


@pytest.mark.parametrize("n", EXPONENTS)
@pytest.mark.parametrize("name", NEW)
def test_float32_is_no_worse_than_naive_float32(name, n):
    """Where the head has no exponent, n is its inverse temperature."""
    x, w, y = (t.float() if t.is_floating_point() else t for t in inputs())
    values = {key: value.float() for key, value in constants_of(name).items()}
    sharpness = "exponent" if "exponent" in HEADS[name].constants else "temperature"
    values[sharpness] = torch.tensor([float(n) if sharpness == "exponent" else 1 / n])
    keys = list(values)

    def ours(x, w, *tensors):
        return head_cross_entropy(x, w, y, head=name, **dict(zip(keys, tensors, strict=True)))

    def naive(x, w, *tensors):
        return F.cross_entropy(head_logits(x, w, head=name, **dict(zip(keys, tensors, strict=True))), y)

    def truth(x, w, *tensors):
        return formula_loss(name, x, w, y, dict(zip(keys, tensors, strict=True)), None, 1, "mean")

    leaves = (x, w, *values.values())
    exact = graded(truth, *(leaf.double() for leaf in leaves))
    a, b = HEADS[name].operands(x, w, HEADS[name].values(D, values))
    scale = a.square().sum(1)[:, None] + b.square().sum(1)
    # of what the logarithm is taken; a dot product's error is of that size itself
    inner = (scale - 2 * a @ b.T) if HEADS[name].form.quantity != "dot" else torch.ones(())
    if HEADS[name].form.quantity == "lorentz":
        inner = 2 * a[:, -1:] - 2 * b[:, -1] - 2 * a @ b.T
    conditioning = (scale / inner).max().item()
    for got, plain, true in zip(graded(ours, *leaves), graded(naive, *leaves), exact, strict=True):
        error, naive_error = ((value.double() - true).abs().max() for value in (got, plain))
        small = n * torch.finfo(torch.float32).eps * conditioning * true.abs().max()
        assert error <= naive_error + 2 * small


@pytest.mark.parametrize("name", HEADS)
def test_on_a_center_and_on_zero_everything_is_finite(name):
    x, w, y = hard_inputs()
    values = constants_of(name, torch.float32)

    def ours(x, w, log_prior, *tensors):
        constants = dict(zip(values, tensors, strict=True))
        return head_cross_entropy(x, w, y, head=name, log_prior=log_prior, z_loss=1e-4, **constants)

    for scale in (1.0, 1e-4, 1e3):
        for value in graded(ours, scale * x.float(), scale * w.float(), torch.zeros(V), *values.values()):
            assert value.isfinite().all()
        assert head_logits(scale * x.float(), scale * w.float(), head=name, **values).isfinite().all()


@pytest.mark.parametrize("name", NEW)
def test_autocast_rounds_what_the_product_takes(name):
    """Loss and logits alike; operands are prepared before they are rounded. Lorentz's are not rounded."""
    x, w, y = inputs(torch.float32)
    values = constants_of(name, torch.float32)
    exact = F.cross_entropy(head_logits(x, w, head=name, **values), y)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head_logits(x, w, head=name, **values)
        got = graded(lambda x, w: head_cross_entropy(x, w, y, head=name, **values), x, w)
    torch.testing.assert_close(got[0], F.cross_entropy(logits, y), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, head_logits(x, w, head=name, **values)) == (name == "lorentz_harmonic")
    torch.testing.assert_close(got[0], exact, rtol=0.05, atol=0.05)
    assert got[1].dtype == got[2].dtype == torch.float32


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_operands(name):
    x, w, y = inputs(torch.bfloat16)
    loss, gx, gw = graded(
        lambda x, w: head_cross_entropy(x, w, y, head=name, **constants_of(name, torch.float32)), x, w
    )
    assert (loss.dtype, gx.dtype, gw.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert loss.isfinite()


def test_a_weight_of_zero_is_an_ignored_target():
    x, w, y = inputs()
    weights = (torch.rand(N) < 0.5).double()
    ignored = y.where(weights > 0, -100)
    ours = graded(lambda x, w: head_cross_entropy(x, w, y, token_weights=weights), x, w)
    for got, expected in zip(ours, graded(lambda x, w: head_cross_entropy(x, w, ignored), x, w), strict=True):
        torch.testing.assert_close(got, expected)
    assert head_cross_entropy(x, w, y, token_weights=torch.zeros(N)).item() == 0


def test_weights_of_another_precision_are_taken():
    """As numpy's are float64."""
    x, w, y = torch.randn(6, 4), torch.randn(9, 4), torch.randint(0, 9, (6,))
    log_prior, weights = torch.zeros(9, requires_grad=True), torch.rand(6, dtype=torch.float64)
    loss = head_cross_entropy(x, w, y, log_prior=log_prior, token_weights=weights)
    loss.backward()
    torch.testing.assert_close(loss, head_cross_entropy(x, w, y, token_weights=weights.float()))
    assert log_prior.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "cosine"}, r"no 'cosine'; did you mean cosine_harmonic\? Heads: harmonic"),
        ({"head": "nope"}, r"no 'nope'\. Heads: harmonic"),
        ({"head": "standard", "exponent": 3.0}, "standard has no constant exponent; its constants: temperature"),
        ({"head": "normalized_dot", "temperature": 0.0}, "temperature: expected a number between"),
        ({"head": "mahalanobis_full"}, "needs matrix"),
        ({"log_prior": torch.zeros(V + 1)}, r"log_prior: expected one number a class, \(37,\), got \(38,\)"),
        ({"token_weights": torch.ones(3)}, "token_weights: expected the shape of labels"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
    ],
)
def test_bad_input_is_named(change, message):
    x, w, y = inputs(torch.float32)
    with pytest.raises(ValueError, match=message):
        head_cross_entropy(x, w, y, **change)


def test_a_head_without_a_product_is_refused_for_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr(harmonic_loss, "MAX_SLOW_CLASSES", V - 1)
    x, w, y = inputs(torch.float32)
    with pytest.raises(ValueError, match=r"manhattan is no function of a matrix product: 53 tokens x 37 classes x 11"):
        head_cross_entropy(x, w, y, head="manhattan")
    assert head_cross_entropy(x, w, y, head="manhattan", allow_slow=True).isfinite()


def every_number(name: str) -> list[str]:
    """All that a head can learn."""
    head = HEADS[name]
    return [key for key, c in head.constants.items() if c.learnable] + ["hidden_scale"] * head.sees_scale + ["prior"]


@pytest.mark.parametrize("name", HEADS)
def test_a_model_learns_saves_and_loads_all_of_its_head(tiny_config, tmp_path, name):
    config = tiny_config(head=name, learn=every_number(name), prior=True, head_constants={})
    model = HarmonicGPT2ForCausalLM(config).train()
    ids = torch.randint(0, 101, (2, 9))
    torch.testing.assert_close(model(ids, labels=ids, skip_logits=True).loss, model.eval()(ids, labels=ids).loss)
    logits = model(ids).logits[:, :-1]
    torch.testing.assert_close(model(ids, labels=ids).loss, F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    model(ids, labels=ids).loss.backward()
    for key, parameter in model.lm_head.named_parameters():
        assert parameter.grad is not None, key
        parameter.data.add_(0.03 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = aligned(HarmonicGPT2ForCausalLM.from_pretrained(tmp_path)).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.lm_head.spec == model.lm_head.spec != config.head_spec or len(every_number(name)) == 1
    spec, kept = model.lm_head.spec, {key: value.clone() for key, value in model.lm_head.state_dict().items()}
    model.resize_token_embeddings(105)
    assert model(ids).logits.shape == (2, 9, 105)
    assert model.lm_head.spec == spec
    for key, value in model.lm_head.state_dict().items():
        assert torch.equal(value[: len(kept[key])], kept[key]), key


def test_the_pages_head_of_ones_own_is_its_formula(monkeypatch):
    """docs/how-to/heads.md: thirty lines."""
    monkeypatch.setattr(heads, "HEADS", {**HEADS})
    text = (Path(__file__).parents[2] / "docs/how-to/heads.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Head(" in b]
    assert block.count("\n") <= 30
    exec(compile(block, "docs/how-to/heads.md", "exec"), {})
    assert "student" in heads.HEADS


def test_configs_name_a_head_in_either_way(tiny_config):
    assert CONFIG_PAIRS == PAIRS
    for (similarity, normalization), name in PAIRS.items():
        config = tiny_config(similarity=similarity, normalization=normalization)
        assert config.head == name
        named = tiny_config(head=name)
        assert (named.similarity, named.normalization) == (similarity, normalization)
        assert named.to_dict() == config.to_dict()
    new = tiny_config(head="cosine_harmonic", exponent=5)
    assert (new.similarity, new.normalization, new.head_spec.exponent) == (None, None, 5.0)
    for fields, message in (
        ({"head": "standard", "similarity": "euclidean"}, "different heads"),
        ({"head": "lorenz"}, "did you mean lorentz_harmonic"),
        ({"head": "standard", "head_constants": {"rank": 3}}, "standard has no constant rank"),
        ({"learn": ["temperature"]}, "harmonic cannot learn 'temperature'; it can: exponent, hidden_scale"),
        ({"learn": ["prior"]}, "without a prior"),
        ({"head": "cosine_harmonic", "learn": ["hidden_scale"]}, "which it does not depend on"),
    ):
        with pytest.raises(Exception, match=message):
            tiny_config(**fields)
