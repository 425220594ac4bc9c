"""The matrix products of a head at an odd and at an aligned number of classes, and the kernels that attention runs."""

import re
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import interleaved, spread
from benchmarks.gpu.settings import Settings, gpt2_small, random_tokens, running
from harmonic_gpt.training.loop import train_step
from harmonic_gpt.training.plan import peak_flops

COLUMNS = {
    "dtype": "", "product": "", "classes": ",", "ms": ",.3f", "tflops": ",.1f", "of_peak": ".0%",
    "compiled": "", "flash": "", "kernels": "",
}  # fmt: skip
ATTENTION = re.compile(r"flash|fmha|attention|attn|sdpa", re.IGNORECASE)


def measurements(settings: Settings) -> dict[str, Callable[[], list[dict]]]:
    return {
        "attention, eager": partial(attention, settings, compiled=False),
        "attention, compiled": partial(attention, settings, compiled=True),
        "mm, bf16": partial(products, settings, torch.bfloat16),
        "mm, fp32": partial(products, settings, torch.float32),
    }


def products(settings: Settings, dtype: torch.dtype) -> list[dict]:
    """x @ w.T, g @ w and g.T @ x of one chunk of the loss, at V = 50,257 and 50,304; in float32 without TF32."""
    rows, dim, sizes = (64, 32, (65, 72)) if settings.toy else (10752, 768, (50257, 50304))
    torch.set_float32_matmul_precision("highest")
    x = torch.randn(rows, dim, device=settings.device, dtype=dtype)
    calls: dict[str, Callable[[], Tensor]] = {}
    labels: dict[str, dict] = {}
    for classes in sizes:
        w = torch.randn(classes, dim, device=settings.device, dtype=dtype)
        g = torch.randn(rows, classes, device=settings.device, dtype=dtype)
        for product, a, b in (("x @ w.T", x, w.T), ("g @ w", g, w), ("g.T @ x", g.T, x)):
            for wide in (False, True) if dtype == torch.bfloat16 else (False,):
                if wide and settings.toy:
                    continue  # a bfloat16 product with a float32 result has a kernel on CUDA alone
                name = f"{product}{', float32 result' if wide else ''}"
                key = f"{name} {classes}"
                calls[key] = partial(torch.mm, a, b, out_dtype=torch.float32) if wide else partial(torch.mm, a, b)
                labels[key] = {"product": name, "rows": rows, "dim": dim, "classes": classes}
    times, errors = interleaved(calls, 1 if settings.toy else 20, settings.device)
    peak = peak_flops(torch.device(settings.device), "bf16" if dtype == torch.bfloat16 else "fp32")
    table = []
    for key, label in labels.items():
        row = label | {"dtype": str(dtype).removeprefix("torch.")}
        if key in errors:
            table.append(row | {"error": errors[key]})
            continue
        row |= spread(times[key])
        row["tflops"] = 2 * rows * dim * label["classes"] / row["ms"] / 1e9
        table.append(row | ({"of_peak": row["tflops"] * 1e12 / peak} if peak else {}))
    return table


def attention(settings: Settings, compiled: bool) -> list[dict]:
    """Names of what attention runs in a step of train.py, by torch's profiler: kernels on CUDA, else operators."""
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        size = {} if settings.toy else {"model__n_layer": 2, "train__batch_tokens": 8192, "train__micro_batch_size": 4}
        config = gpt2_small(
            settings, "harmonic", run_dir=f"{folder}/run", data__dir=random_tokens(settings),
            data__vocab_size=settings.vocab_size, train__compile=compiled, **size,
        )  # fmt: skip
        with running(config) as run:
            for _ in range(2):
                train_step(run)
            activities = [ProfilerActivity.CPU, *([] if settings.toy else [ProfilerActivity.CUDA])]
            with profile(activities=activities) as profiler:
                train_step(run)
                if not settings.toy:
                    torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CPU if settings.toy else torch.autograd.DeviceType.CUDA
    names = {event.key for event in profiler.key_averages() if event.device_type == kind}
    kernels = sorted(name for name in names if ATTENTION.search(name))
    flash = any("flash" in name.lower() for name in kernels)
    return [{"compiled": compiled, "flash": flash, "kernels": [name[:160] for name in kernels]}]
