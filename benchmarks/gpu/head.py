"""The loss head beside three bare products at an aligned number of classes, and beside the dot-product heads of others.

Time of forward and backward, memory beyond the gradients, and the error of the gradients against float64.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.device import describe, interleaved, peak_bytes, spread
from benchmarks.gpu.settings import Settings
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.model.harmonic_loss import harmonic_cross_entropy

COLUMNS = {
    "dtype": "", "contender": "", "tokens": ",", "classes": ",", "ms": ",.2f", "to_floor": ".2f",
    "transient_gib": ".2f", "grad_x_error": ".1e", "grad_w_error": ".1e", "options": "", "skipped": "",
}  # fmt: skip
FLOOR, HARMONIC, STANDARD = "three bare products", "harmonic, ours", "standard, ours"
SLICE = 512  # tokens of the comparison with float64, whose logits are built whole

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (N, D), w (V, D), y (N,) -> mean of the losses


class Contender(NamedTuple):
    """loss: None for the products, which have none. aligned: is given a V that is a multiple of 64, whose last classes
    occur nowhere. distance: the harmonic head, not a dot product."""

    loss: Loss | None
    aligned: bool = False
    distance: bool = False
    options: str | None = None


class Sizes(NamedTuple):
    tokens: int
    dim: int
    classes: int
    aligned_classes: int


def measurements(settings: Settings) -> dict[str, Callable[[], list[dict]]]:
    names = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {f"head, {name}": partial(heads, settings, dtype) for name, dtype in names.items()}


def heads(settings: Settings, dtype: torch.dtype) -> list[dict]:
    """One row a contender. All take the same inputs, in `dtype`; float32 products run without TF32."""
    torch.set_float32_matmul_precision("highest")
    tokens = 65536 if dtype == torch.bfloat16 else 8192
    sizes = Sizes(64, 32, 65, 72) if settings.toy else Sizes(tokens, 768, 50257, 50304)
    inputs = {aligned: _inputs(sizes, aligned, dtype, settings.device) for aligned in (False, True)}
    contenders, skipped = _contenders(settings, dtype, inputs[False])
    calls = {name: partial(_forward_backward, c, *inputs[c.aligned]) for name, c in contenders.items()}
    times, errors = interleaved(calls, 1 if settings.toy else 9, settings.device)

    floor = median(times[FLOOR]) * 1e3 if FLOOR in times else None
    common = {"dtype": str(dtype).removeprefix("torch."), "tokens": sizes.tokens, "dim": sizes.dim}
    rows = []
    for name, contender in contenders.items():
        x, w, y = inputs[contender.aligned]
        row = common | {"contender": name, "classes": len(w), "distance": contender.distance}
        row |= {"options": contender.options} if contender.options else {}
        if name in errors:  # a rival's failure is its own, and no reason to measure anew
            rows.append(row | {"error" if name in (FLOOR, HARMONIC, STANDARD) else "skipped": errors[name]})
            continue
        row |= spread(times[name]) | {"to_floor": median(times[name]) * 1e3 / floor if floor else None}
        _forget_gradients(*(tensors for pair in inputs.values() for tensors in pair[:2]))
        if (peak := peak_bytes(calls[name], settings.device)) is not None:
            gradients = x.numel() * x.itemsize + w.numel() * w.itemsize
            row |= {"peak_gib": peak / 2**30, "transient_gib": (peak - gradients) / 2**30}
        if contender.loss is not None:
            row |= _gradient_errors(contender, x, w, y)
        rows.append(row)
    return rows + [common | {"contender": name, "skipped": reason} for name, reason in skipped.items()]


def _inputs(sizes: Sizes, aligned: bool, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) and w (V, D) with rows of norm about 1, as a model with matched norms has them; y (N,)."""
    generator = torch.Generator(device).manual_seed(0)
    x, w = (
        torch.randn(n, sizes.dim, generator=generator, device=device) / sizes.dim**0.5
        for n in (sizes.tokens, sizes.aligned_classes)
    )
    y = torch.randint(sizes.classes, (sizes.tokens,), generator=generator, device=device)
    w = w if aligned else w[: sizes.classes].clone()
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), y


def _forget_gradients(*leaves: Tensor) -> None:
    for leaf in leaves:
        leaf.grad = None


def _forward_backward(contender: Contender, x: Tensor, w: Tensor, y: Tensor) -> None:
    _forget_gradients(x, w)  # as after zero_grad(set_to_none=True)
    if contender.loss is not None:
        contender.loss(x, w, y).backward()
        return
    with torch.no_grad():
        logits = x @ w.T
        x.grad, w.grad = logits @ w, logits.T @ x


def _gradient_errors(contender: Contender, x: Tensor, w: Tensor, y: Tensor) -> dict:
    """||g - g64|| / ||g64|| of both gradients on the first tokens, from the same (rounded) inputs."""
    x, w, y = x.detach()[:SLICE].requires_grad_(), w.detach().requires_grad_(), y[:SLICE]
    contender.loss(x, w, y).backward()
    x64, w64 = (leaf.detach().double().requires_grad_() for leaf in (x, w))
    logits = head_logits(x64, w64, exponent=_exponent(x)) if contender.distance else x64 @ w64.T
    F.cross_entropy(logits, y).backward()
    return {
        f"grad_{name}_error": ((leaf.grad.double() - true.grad).norm() / true.grad.norm()).item()
        for name, leaf, true in (("x", x, x64), ("w", w, w64))
    }


def _exponent(x: Tensor) -> float:
    return x.shape[1] ** 0.5


def _contenders(
    settings: Settings, dtype: torch.dtype, inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Who takes part, and why others do not."""
    contenders = {
        FLOOR: Contender(None, aligned=True),
        HARMONIC: Contender(lambda x, w, y: harmonic_cross_entropy(x, w, y, exponent=_exponent(x)), distance=True),
        STANDARD: Contender(
            lambda x, w, y: harmonic_cross_entropy(x, w, y, exponent=1, similarity="dot", normalization="softmax")
        ),
        "F.linear + F.cross_entropy": Contender(lambda x, w, y: F.cross_entropy(F.linear(x, w), y)),
    }
    skipped = {}
    others = {
        "F.linear_cross_entropy": partial(_torchs_best, settings, inputs),
        "Liger": _liger,
        "cut-cross-entropy": partial(_cut_cross_entropy, dtype),
        "QuACK": partial(_quack, dtype),
    }
    for name, other in others.items():
        try:
            contenders[name] = other()
        except Exception as error:  # noqa: BLE001 - a library that is not there, or not for this device, is a row
            skipped[name] = describe(error)
    return contenders, skipped


def _torchs_best(settings: Settings, inputs: tuple[Tensor, Tensor, Tensor]) -> Contender:
    """F.linear_cross_entropy with whatever policy and chunk is fastest here: its own choice is one of these."""
    chunks = (None, 32) if settings.toy else (None, 2048, 8192, len(inputs[0]))
    candidates = {}
    for policy in ("auto", "balanced", "compact"):
        for chunk in chunks:
            # float32 sums under every policy, as "auto" has them; without a chunk its heuristic chooses one
            try:
                options = torch.nn.LinearCrossEntropyOptions(
                    acc_policy=policy, batch_chunk_size=chunk, acc_dtype=torch.float32
                )
            except ValueError:  # torch 2.15 has no "balanced"
                continue
            candidates[f"{policy}, {chunk or 'its own'} rows a chunk"] = Contender(
                lambda x, w, y, options=options: F.linear_cross_entropy(x, w, y, options=options)
            )
    calls = {name: partial(_forward_backward, candidate, *inputs) for name, candidate in candidates.items()}
    times, errors = interleaved(calls, 1 if settings.toy else 3, settings.device)
    if not times:
        raise RuntimeError(f"no setting of F.linear_cross_entropy works: {errors}")
    best = min(times, key=lambda name: median(times[name]))
    return candidates[best]._replace(options=best)


def _liger() -> Contender:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return Contender(lambda x, w, y: loss(w, x, y))


def _cut_cross_entropy(dtype: torch.dtype) -> Contender:
    if dtype != torch.bfloat16:
        raise ValueError(f"takes float16 and bfloat16, not {dtype}")
    from cut_cross_entropy import linear_cross_entropy

    return Contender(linear_cross_entropy, options="small gradients dropped (its default)")


def _quack(dtype: torch.dtype) -> Contender:
    if dtype != torch.bfloat16:
        raise ValueError(f"takes float16 and bfloat16, not {dtype}")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return Contender(chunked_linear_cross_entropy, aligned=True)
