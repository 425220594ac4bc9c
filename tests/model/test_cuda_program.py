"""The whole loss on fake CUDA tensors: shapes, dtypes, strides and operators as on a GPU, nothing computed.

The CPU build of torch has no CUDA device guard, so that autograd and Python's indexing do not run there; everything
beneath them does. Sizes are those of a GPT-2 small step on one H100.
"""

import re
import weakref
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harmonic_gpt.model import harmonic_kernels, harmonic_loss_cuda
from harmonic_gpt.model import harmonic_loss as module
from harmonic_gpt.model.harmonic_elements import Formula, Needs
from harmonic_gpt.model.heads import find_head, find_pair
from tests.conftest import HEADS

pytest.importorskip("triton", reason="the triton extra is not installed")

N, D, V = 65536, 768, 50257
PADDED = 50304
ALIGNMENT = 16  # bytes: of rows, for the fastest products and for wide loads
# Limits of one step with bfloat16 operands, in 7 chunks. Bytes of all operators but the products and the kernel (inputs
# read once, outputs written once): the column sums read g (6.6 GB), the rest is of the size of x and w; an H100 moves
# 3 GB in a millisecond. Memory beyond inputs and gradients: u, half as much for g, the padded w, a float32 w.
MAX_OTHER_BYTES = 8.5e9
MAX_TRANSIENT_BYTES = 3.2e9
MAX_OPERATORS = 100
# Before torch 2.11 a product of bfloat16 operands is added to a float32 total in passes of its own
ONE_PASS = torch.__version__ >= "2.11"


class _Indexing(TorchFunctionMode):
    """Python's indexing and copy_ as the operators beneath them, which need no CUDA device guard."""

    @staticmethod
    def view(x, index):
        for dim, item in enumerate(index if isinstance(index, tuple) else (index,)):
            if item is None:
                x = torch.ops.aten.unsqueeze.default(x, dim)
            else:
                x = torch.ops.aten.slice.Tensor(x, dim, item.start, item.stop, item.step or 1)
        return x

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__:
            return self.view(*args)
        if function is torch.Tensor.__setitem__:
            value = args[2] if isinstance(args[2], torch.Tensor) else torch.full((), args[2], device=args[0].device)
            return torch.ops.aten.copy_.default(self.view(*args[:2]), value)
        if function is torch.Tensor.copy_:
            return torch.ops.aten.copy_.default(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def size(tensors) -> int:
    """Bytes of distinct tensors in nested arguments."""
    return sum(
        t.numel() * t.itemsize for t in {id(t): t for t in tree_leaves(tensors) if isinstance(t, torch.Tensor)}.values()
    )


class _Watch(TorchDispatchMode):
    """Products, operators, the bytes that operators other than products move, and the peak of what they made."""

    def __init__(self):
        super().__init__()
        self.products, self.operators, self.other_bytes = [], Counter(), 0
        self.live_bytes = self.peak_bytes = 0

    def free(self, n_bytes):
        self.live_bytes -= n_bytes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        product = re.match(r"aten\.(add)?mm", str(function))
        if product and ("out" in kwargs or "dtype" in str(function)):
            # Fake tensors would take the first apart into operators that no GPU sees, and in torch 2.9 lack the second
            a, b = [t for t in args if isinstance(t, torch.Tensor) and t is not kwargs.get("out")][-2:]
            shape = (a.shape[0], b.shape[1])
            assert a.shape[1] == b.shape[0]
            if "out" in kwargs:
                result = kwargs["out"]
                assert result.shape == shape
            else:
                result = a.new_empty(shape, dtype=next(t for t in args if isinstance(t, torch.dtype)))
        else:
            result = function(*args, **kwargs)
        views = any(a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments)
        if views or str(function).startswith("prim"):
            return result
        self.operators[str(function)] += 1
        if isinstance(result, torch.Tensor) and not any(result is t for t in tree_leaves((args, kwargs))):
            self.live_bytes += size(result)
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(result, self.free, size(result))
        if product:
            self.products.append((function, args, kwargs, result))
        elif "empty" not in str(function):
            self.other_bytes += size((args, kwargs)) + size(result)
        return result


class _Kernel:
    """In place of the kernel: its launches."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((grid, args, options))


class Trace:
    def __init__(self, monkeypatch, head, dtype, n=N, needs=(True, True), impl="auto"):
        kernel = _Kernel()
        monkeypatch.setattr(harmonic_kernels, "_element_kernel", kernel)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(harmonic_loss_cuda, "_triton_failed", False)
        with torch.no_grad(), FakeTensorMode(), _Indexing():
            x, w = (torch.empty(k, D, device="cuda:0", dtype=t) for k, t in ((n, dtype), (V, torch.float32)))
            y, weight = torch.empty(n, dtype=torch.long, device="cuda:0"), torch.empty(n, device="cuda:0")
            name, constants = find_pair(*head, 28.0)
            form = find_head(name).form
            formula = Formula(*form, form.rate(find_head(name).values(D, constants)))
            with _Watch() as watch:
                self.losses, self.grad_x, self.grad_w, *_ = module.losses_and_gradients(
                    x, w, y, weight, formula, dtype, Needs(*needs), impl
                )
        self.launches, self.products, self.operators = kernel.launches, watch.products, watch.operators
        self.other_bytes, self.peak_bytes = watch.other_bytes, watch.peak_bytes


DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
def test_products_are_few_aligned_and_accumulate_in_float32(monkeypatch, head, dtype):
    trace = Trace(monkeypatch, head, dtype)
    chunks = len(trace.launches)
    assert chunks == 7  # 2 GiB of float32 each
    assert len(trace.products) == 3 * chunks
    for function, args, kwargs, result in trace.products:
        assert result.dtype == torch.float32
        operands = args[-2:] if "dtype" not in str(function) else args[-3:-1]
        assert [t.dtype for t in operands] == [dtype, dtype], function
        for t in (*operands, result, (kwargs or {}).get("out", result)):
            assert max(t.stride()) * t.itemsize % ALIGNMENT == 0, (function, t.shape, t.stride())
            assert t.storage_offset() * t.itemsize % ALIGNMENT == 0
            assert not {V, 2 * V}.intersection(t.shape)
    accumulated = [f for f, args, *_ in trace.products if "addmm" in str(f) and args[0].shape == (PADDED, D)]
    assert len(accumulated) == (chunks if ONE_PASS or dtype == torch.float32 else 0)
    assert trace.losses.shape == (N,)
    for gradient, shape in ((trace.grad_x, (N, D)), (trace.grad_w, (V, D))):
        assert gradient.shape == shape
        assert gradient.dtype == torch.float32
        assert gradient.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", HEADS)
def test_kernel_launches(monkeypatch, head, dtype):
    trace = Trace(monkeypatch, head, dtype)
    rows = []
    for grid, (u, g, x2, w2, y, weight, losses, row_sums, n_classes, u_stride, g_stride, *_), options in trace.launches:
        rows.append(u.shape[0])
        assert grid == (len(u),)
        assert u.shape == g.shape == (len(u), PADDED)
        assert (n_classes, u_stride, g_stride) == (V, PADDED, PADDED)
        assert (u.dtype, g.dtype) == (torch.float32, dtype)
        assert u is not g
        for t in (u, g, x2, w2, y, weight, losses, row_sums):
            assert t.is_contiguous()
            assert t.is_cuda
        assert options["GRADIENT"]
        assert options["FAST"] != harmonic_kernels.INTERPRETED
    assert sum(rows) == N
    assert all(n % 128 == 0 for n in rows)
    assert max(rows) * PADDED * 4 <= 2 * 2**30


@pytest.mark.skipif(not ONE_PASS, reason="the limits hold from torch 2.11: addmm(out_dtype=) into a float32 total")
@pytest.mark.parametrize("head", HEADS)
def test_other_passes_stay_under_their_limit(monkeypatch, head):
    trace = Trace(monkeypatch, head, torch.bfloat16)
    assert trace.other_bytes <= MAX_OTHER_BYTES, f"{trace.other_bytes / 1e9:.2f} GB: {trace.operators}"
    assert trace.operators.total() <= MAX_OPERATORS
    transient = trace.peak_bytes - size((trace.grad_x, trace.grad_w))
    assert transient <= MAX_TRANSIENT_BYTES, f"{transient / 1e9:.2f} GB"


def test_evaluation_and_frozen_operands_do_less(monkeypatch):
    loss = Trace(monkeypatch, HEADS[0], torch.bfloat16, needs=(False, False))
    assert len(loss.products) == 7
    assert all(args[1] is args[0] and not options["GRADIENT"] for _, args, options in loss.launches)  # no buffer for g
    frozen = Trace(monkeypatch, HEADS[0], torch.bfloat16, needs=(True, False))
    assert len(frozen.products) == 14
    assert frozen.grad_w is None


def test_float64_and_the_named_torch_path_launch_no_kernel(monkeypatch):
    trace = Trace(monkeypatch, HEADS[0], torch.bfloat16, n=1024, impl="torch")
    assert not trace.launches
    assert all(p[3].dtype == torch.float32 for p in trace.products)
    assert not Trace(monkeypatch, HEADS[0], torch.float64, n=1024).launches


def test_all_operators_have_cuda_kernels(monkeypatch):
    names = {"aten::_assert_async.msg"}
    for head in HEADS:
        for dtype in DTYPES:
            for impl in ("auto", "torch"):
                for operator in Trace(monkeypatch, head, dtype, n=1024, impl=impl).operators:
                    names.add("aten::" + operator.removeprefix("aten.").removesuffix(".default"))
    assert {"aten::mm.dtype_out", "aten::addmm.out"} <= names
    assert ("aten::addmm.dtype_out" in names) == ONE_PASS
    if torch.version.cuda:
        missing = {n for n in names if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(n, "CUDA")}
    else:
        missing = names - operators_with_cuda_kernels()
    assert not missing


def operators_with_cuda_kernels() -> set[str]:
    """From the table that torch is generated from: its wheels carry it."""
    torchgen = pytest.importorskip("torchgen", reason="this build of torch has no torchgen")
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    entries = {
        e["func"].split("(")[0]: e for e in yaml.load(table.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    }

    def has_kernel(entry: dict) -> bool:
        if "structured_delegate" in entry:
            return has_kernel(entries[entry["structured_delegate"]])
        keys = {
            key.strip()
            for group in entry.get("dispatch", {"CompositeImplicitAutograd": None})
            for key in group.split(",")
        }
        return (
            "CUDA" in keys
            or "ufunc_inner_loop" in entry
            or any(key.startswith("Composite") for key in keys)
            or bool(entry.get("autogen"))
        )

    found = {name for name, entry in entries.items() if has_kernel(entry)}
    # out variants that torch makes from the others
    generated = {
        n for e in entries.values() if has_kernel(e) for n in str(e.get("autogen", "")).replace(" ", "").split(",")
    }
    return {"aten::" + name for name in found | generated}
