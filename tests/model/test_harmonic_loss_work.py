"""What the loss makes, reads and computes with: no (N, V) tensor, nothing for a frozen operand, float32 products."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harmonic_gpt import harmonic_cross_entropy, head_logits
from harmonic_gpt.model import harmonic_logits as logits_module
from harmonic_gpt.model import harmonic_loss as module
from tests.conftest import HEADS
from tests.model.loss_cases import D, N, V, inputs, ours, run


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("head", HEADS)
def test_never_builds_all_logits(head):
    x, w, y = inputs(torch.float32, n=400)
    with _Largest() as largest:
        run(ours(head, 28), x, w, y)
    assert largest.elements <= max(20 * V, 400 * D)  # a chunk, or the hidden states; N x V is 14,800


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_grad_does_no_gradient_work(monkeypatch, reduction):
    asked = []
    real = module.losses_and_gradients

    def spy(x, w, labels, row_weight, formula, dtype, needs, impl):
        asked.append(needs)
        return real(x, w, labels, row_weight, formula, dtype, needs, impl)

    monkeypatch.setattr(module, "losses_and_gradients", spy)
    x, w, y = inputs()
    with torch.no_grad():
        a = harmonic_cross_entropy(x.requires_grad_(), w, y, exponent=8.0, reduction=reduction)
    b = harmonic_cross_entropy(x.detach(), w, y, exponent=8.0, reduction=reduction)
    assert asked == [(False,) * 4] * 2
    torch.testing.assert_close(a, b)


class _Made(TorchDispatchMode):
    """Shapes of the tensors that operators made, views of others left out; how many products they were."""

    def __init__(self):
        super().__init__()
        self.shapes, self.products = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += "mm" in str(function)
        views = any(argument.alias_info is not None for argument in function._schema.arguments)
        if isinstance(result, torch.Tensor) and not views:
            self.shapes.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("frozen", ["hidden states", "centers"])
def test_a_frozen_operand_pays_for_no_gradient(head, frozen, reduction):
    """With the centers frozen no (V, D) tensor is made, with the hidden states frozen no (N, D) one, and there is one
    product less."""
    x, w, y = inputs(torch.float32)
    _, gx, gw = run(lambda *a: ours(head, 8.0, reduction)(*a).sum(), x, w, y)
    with _Made() as both:
        run(lambda *a: ours(head, 8.0, reduction)(*a).sum(), x, w, y)
    x.requires_grad_(frozen == "centers")
    w.requires_grad_(frozen == "hidden states")
    with _Made() as made:
        ours(head, 8.0, reduction)(x, w, y).sum().backward()
    shape, moving, expected = ((V, D), x, gx) if frozen == "centers" else ((N, D), w, gw)
    assert shape in both.shapes  # otherwise the next line would prove nothing
    if frozen == "centers":
        assert shape not in made.shapes
    assert made.products < both.products
    assert torch.equal(moving.grad, expected)


def test_a_shard_of_the_centers_is_refused(tmp_path):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    x, w, y = inputs(torch.float32)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(w, mesh, [Shard(0)])
        for call in (
            lambda: harmonic_cross_entropy(x, sharded, y, exponent=8.0),
            lambda: harmonic_cross_entropy(distribute_tensor(x, mesh, [Shard(0)]), w, y, exponent=8.0),
            lambda: head_logits(x, sharded, exponent=8.0),
        ):
            with pytest.raises(ValueError, match="inside the head's forward"):
                call()
        assert torch.equal(ours(HEADS[0], 8.0)(x, sharded.full_tensor(), y), ours(HEADS[0], 8.0)(x, w, y))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("head", HEADS)
def test_float16_serves_without_gradients_only(head):
    x, w, y = inputs(torch.float32)
    x, w = x.half(), w.half()
    options = {"exponent": 28, "similarity": head[0], "normalization": head[1]}
    exact = head_logits(x.double(), w.double(), **options)
    logits = head_logits(x, w, **options)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(ours(head, 28)(x, w, y).double(), F.cross_entropy(exact, y), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="bfloat16"):
        ours(head, 28)(x, w.requires_grad_(), y)
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="bfloat16"):
        ours(head, 28)(x.float(), w.detach().float().requires_grad_(), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_inference_reads_the_centers_once(monkeypatch, head, dtype):
    """Few rows, no gradients: in blocks, with the same numbers to the rounding of float32."""
    x, w, _ = inputs(dtype, n=6)
    options = {"exponent": 28, "similarity": head[0], "normalization": head[1]}
    whole = head_logits(x, w, **options)
    norms = []
    real = logits_module.squared_norms

    def spy(rows):
        norms.append(len(rows))
        return real(rows)

    monkeypatch.setattr(logits_module, "squared_norms", spy)
    monkeypatch.setattr(logits_module, "INFERENCE_BLOCK_BYTES", 10 * D * max(4, x.itemsize))
    blocks = head_logits(x.view(2, 3, D), w, **options).view(6, V)
    assert norms == ([] if head == ("dot", "softmax") else [10, 10, 10, V - 30, 2])  # the last: the hidden states
    torch.testing.assert_close(blocks, whole, rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-5)
    norms.clear()
    head_logits(x, w.clone().requires_grad_(), **options)
    assert len(norms) <= 2  # gradients: at once


FLAGS = {
    "default": lambda: None,
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all backends": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


def precision_settings() -> list:
    """Of the newer interface, and of the older where the two agree (it raises where they do not)."""
    newer = [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
    try:
        return [*newer, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()]
    except RuntimeError:
        return newer


class _Precisions(TorchDispatchMode):
    """The settings at every product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in str(function):
            self.seen.append(precision_settings())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("flag", FLAGS)
def test_float32_products_are_float32_whatever_the_flags(flag):
    x, w, y = inputs(torch.float32)
    x.requires_grad_()
    try:
        FLAGS[flag]()
        before = precision_settings()
        with _Precisions() as precisions:
            ours(HEADS[0], 8.0)(x, w, y).backward()
            ours(HEADS[0], 8.0, "none")(x, w, y).sum().backward()
            head_logits(x.detach(), w, exponent=8.0)
        assert precision_settings() == before
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    assert len(precisions.seen) == 6
    for cuda, cpu, *older in precisions.seen:
        assert {cuda, cpu} <= {"ieee", "none"}
        assert older == [False, "highest"]  # CUDA's products refuse to run where the two interfaces disagree
