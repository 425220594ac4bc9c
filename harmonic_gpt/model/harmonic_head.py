"""The unembedding head: one definition of its logits, and a loss that never builds the (N, V) matrix in training.

Symbols of the shape comments: N tokens, D hidden size, V classes, C tokens of one chunk.

    harmonic (euclidean + harmax):  z_j = -n log ||x - w_j||,  p = softmax(z),  loss = -log p_y

Baek et al., "Harmonic Loss Trains Interpretable AI Models", arXiv 2502.01628, section 2. n acts on the distance, not its square.
This file needs only torch: it can be copied into any project.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Distances are formed as ||x||^2 + ||w||^2 - 2 x.w in float32, whose rounding error is about this share of ||x||^2 + ||w||^2.
# Below it a distance is noise; it is raised to the floor, and its gradient is zero.
RELATIVE_FLOOR = 4e-6
# Bytes of one (C, V) buffer of the chunked loss; two exist at a time. Larger chunks re-read grad_w less often.
CHUNK_BYTES = 32 * 2**20


class HeadSpec(NamedTuple):
    """Which of the four heads: the two choices of the paper's ablation (section 6) and the exponent."""

    exponent: float
    similarity: str = "euclidean"
    normalization: str = "harmax"

    def check(self) -> "HeadSpec":
        if self.similarity not in ("euclidean", "dot"):
            raise ValueError(f"similarity: expected 'euclidean' or 'dot', got {self.similarity!r}")
        if self.normalization not in ("harmax", "softmax"):
            raise ValueError(f"normalization: expected 'harmax' or 'softmax', got {self.normalization!r}")
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise ValueError(f"exponent: expected a positive number, got {self.exponent!r}")
        return self


def _operands(hidden_states: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Both operands in one dtype: autocast's where it is on, otherwise the wider of the two.

    Everything after this (norms, products, distances) uses these same values, so that rounding moves points and does not
    break ||x||^2 + ||w||^2 - 2 x.w = ||x - w||^2.
    """
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if torch.float64 in (hidden_states.dtype, centers.dtype):
            dtype = torch.float64  # autocast leaves float64 alone
    else:
        dtype = torch.promote_types(hidden_states.dtype, centers.dtype)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(
            f"the harmonic head computes in float32, float64 or bfloat16, got {dtype}: its gradients are formed in the forward "
            "pass, where float16 loss scaling cannot reach them. Use bfloat16 (mixed_precision=bf16)."
        )
    return hidden_states.to(dtype), centers.to(dtype)


def _no_autocast(tensor: Tensor):
    return torch.autocast(tensor.device.type, enabled=False)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: the dtype in which distances and losses are formed."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def head_logits(
    hidden_states: Tensor,
    centers: Tensor,
    *,
    exponent: float,
    similarity: str = "euclidean",
    normalization: str = "harmax",
) -> Tensor:
    """Unnormalised logits z, of which softmax(z) are the class probabilities. Differentiable; builds all of (N, V).

    Args:
        hidden_states: (..., N, D), already multiplied by hidden_scale.
        centers: (V, D), or (..., V, D) with the same leading dimensions (one head per batch entry).
        exponent: harmonic exponent n on the distance; ignored by softmax.
        similarity, normalization: "euclidean" | "dot" and "harmax" | "softmax".

    Returns:
        (..., N, V) in float32 (float64 for float64 inputs):
        euclidean + harmax  -(n/2) log d^2      euclidean + softmax  -d
        dot + harmax        n log |s|           dot + softmax        s
        with d^2 and |s| floored where float32 cannot resolve them (zero gradient there).
    """
    HeadSpec(exponent, similarity, normalization).check()
    x, w = _operands(hidden_states, centers)
    with _no_autocast(x):
        x, w = _wide(x), _wide(w)
        s = x @ w.mT  # (..., N, V)
        if similarity == "dot" and normalization == "softmax":
            return s
        x2 = x.square().sum(-1).unsqueeze(-1)  # (..., N, 1)
        w2 = w.square().sum(-1).unsqueeze(-2)  # (..., 1, V)
        if similarity == "dot":
            return exponent * torch.log(_floored(s.abs(), (x2 * w2).sqrt()))
        d2 = _floored(x2 + w2 - 2 * s, x2 + w2)
        return -(exponent / 2) * torch.log(d2) if normalization == "harmax" else -d2.sqrt()


def _floored(value: Tensor, scale: Tensor) -> Tensor:
    floor = (RELATIVE_FLOOR * scale + torch.finfo(torch.float32).tiny).detach()
    return torch.where(value > floor, value, floor)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with a float32 (float64) result. bfloat16 products are exact in float32; only CUDA has a kernel that keeps them."""
    if a.dtype == torch.bfloat16 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return _wide(a) @ _wide(b)


def _chunk(x: Tensor, w: Tensor, x2: Tensor, w2: Tensor, spec: HeadSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits of one chunk, their derivative, and where the floor acted.

    Returns z (C, V); inner (C, V), the quantity that `_weights` turns into dz/d(inner); floored (C, V) bool or None.
    """
    s = _mm(x, w.mT)  # (C, V)
    if spec.similarity == "dot":
        if spec.normalization == "softmax":
            return s, s, None
        floor = (x2[:, None] * w2).sqrt_().mul_(RELATIVE_FLOOR).add_(torch.finfo(torch.float32).tiny)
        floored = s.abs() <= floor
        return torch.where(floored, floor, s.abs()).log_().mul_(spec.exponent), s, floored
    d2 = s.mul_(-2).add_(x2[:, None]).add_(w2)
    tiny = torch.finfo(torch.float32).tiny
    floored = None
    # No floor of a row exceeds that of the largest center. Usually no distance comes near it, and one reduction proves it.
    # (Written so that a NaN takes the slow path and stays a NaN.)
    if not (d2.amin(1) > RELATIVE_FLOOR * (x2 + w2.max()) + tiny).all():
        floor = (x2[:, None] + w2).mul_(RELATIVE_FLOOR).add_(tiny)
        floored = d2 <= floor
        d2 = torch.where(floored, floor, d2)
    if spec.normalization == "harmax":
        return d2.log().mul_(-spec.exponent / 2), d2, floored
    z = d2.sqrt().neg_()
    return z, z, floored


def _weights(p: Tensor, inner: Tensor, floored: Tensor | None, spec: HeadSpec) -> Tensor:
    """(p - onehot) -> g = (p - onehot) * dz/d(inner), in place. Shapes (C, V)."""
    match spec.similarity, spec.normalization:
        case "euclidean", "harmax":
            g = p.div_(inner).mul_(-spec.exponent / 2)  # inner = d^2
        case "euclidean", "softmax":
            g = p.div_(inner).mul_(0.5)  # inner = z = -d, dz/d(d^2) = -1 / (2 d)
        case "dot", "harmax":
            g = p.div_(inner).mul_(spec.exponent)  # inner = s
        case _:
            g = p  # inner = s = z
    return g if floored is None else g.masked_fill_(floored, 0)


def _losses_and_gradients(
    x: Tensor, w: Tensor, labels: Tensor, row_weight: Tensor, spec: HeadSpec, with_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss of every token, and the gradients of sum_i row_weight_i * loss_i, a chunk of tokens at a time.

    Args: x (N, D), w (V, D) in one dtype; labels (N,) within [0, V); row_weight (N,) float.
    Returns: losses (N,), grad_x (N, D), grad_w (V, D), all in float32 (float64); gradients None if not asked for.
    """
    n_tokens, n_classes = x.shape[0], w.shape[0]
    x2, w2 = _wide(x).square().sum(1), _wide(w).square().sum(1)  # (N,), (V,)
    wide = x2.dtype
    losses = x.new_empty(n_tokens, dtype=wide)
    grad_x = x.new_empty(x.shape, dtype=wide) if with_gradients else None
    grad_w = x.new_zeros(w.shape, dtype=wide) if with_gradients else None
    column_sums = x.new_zeros(n_classes, dtype=wide) if with_gradients else None  # sum_i g_ij
    euclidean = spec.similarity == "euclidean"
    size = max(16, CHUNK_BYTES // (n_classes * wide.itemsize))
    for start in range(0, n_tokens, size):
        rows = slice(start, start + size)
        y = labels[rows, None]  # (C, 1)
        z, inner, floored = _chunk(x[rows], w, x2[rows], w2, spec)
        log_normalizer = z.logsumexp(1, keepdim=True)  # (C, 1)
        losses[rows] = (log_normalizer - z.gather(1, y)).squeeze(1)
        if not with_gradients:
            continue
        if inner is z:  # z is still needed below
            p = (z - log_normalizer).exp_()
        else:
            p = z.sub_(log_normalizer).exp_()
        p.scatter_add_(1, y, p.new_full((), -1.0).expand_as(y))
        # An ignored row has weight 0. A row of weight w contributes w times its gradient.
        g = _weights(p, inner, floored, spec).mul_(row_weight[rows, None])
        g = g.to(x.dtype)  # bf16 operands: a bf16 GEMM; the sums below are of the same rounded g
        grad_x[rows] = _mm(g, w)
        grad_w.add_(_mm(g.mT, x[rows]))
        if euclidean:
            g = _wide(g)
            grad_x[rows] = (x[rows] * g.sum(1, keepdim=True) - grad_x[rows]).mul_(2)
            column_sums += g.sum(0)
    if with_gradients and euclidean:
        grad_w = torch.addcmul(grad_w.neg_(), w.to(wide), column_sums[:, None]).mul_(2)
    return losses, grad_x, grad_w


class _ReducedLoss(torch.autograd.Function):
    """Sum of row_weight * loss. Gradients are formed in forward and scaled in backward: three GEMMs in all, like a linear head."""

    @staticmethod
    def forward(ctx, hidden_states, centers, labels, row_weight, spec):
        with _no_autocast(hidden_states):
            x, w = hidden_states, centers
            losses, grad_x, grad_w = _losses_and_gradients(x, w, labels, row_weight, spec, with_gradients=True)
            ctx.gradients = (grad_x, grad_w)
            return (losses * row_weight).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        if ctx.gradients is None:
            raise RuntimeError(
                "backward ran twice through the same harmonic loss. Its gradients are formed in the forward pass and given away "
                'once: compute the loss again, or use reduction="none", which recomputes in backward.'
            )
        (grad_x, grad_w), ctx.gradients = ctx.gradients, None
        dtype = grad_output.dtype
        return grad_x.mul_(grad_output.to(dtype)), grad_w.mul_(grad_output.to(dtype)), None, None, None


class _TokenLosses(torch.autograd.Function):
    """Every token's loss. Backward needs the upstream vector and recomputes, so it costs one more GEMM than `_ReducedLoss`."""

    @staticmethod
    def forward(ctx, hidden_states, centers, labels, row_weight, spec):
        ctx.save_for_backward(hidden_states, centers, labels, row_weight)
        ctx.spec = spec
        with _no_autocast(hidden_states):
            losses, _, _ = _losses_and_gradients(hidden_states, centers, labels, row_weight, spec, with_gradients=False)
            return losses * row_weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        hidden_states, centers, labels, row_weight = ctx.saved_tensors
        with _no_autocast(hidden_states):
            upstream = row_weight * grad_output
            _, grad_x, grad_w = _losses_and_gradients(hidden_states, centers, labels, upstream, ctx.spec, with_gradients=True)
        return grad_x, grad_w, None, None, None


@torch.compiler.disable
def harmonic_cross_entropy(
    hidden_states: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    exponent: float,
    similarity: str = "euclidean",
    normalization: str = "harmax",
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy of a harmonic (or any of the four) head, in nats, without building the (N, V) logits.

    Equal to `F.cross_entropy(head_logits(hidden_states, centers, ...), labels)`; memory is two chunks of CHUNK_BYTES and the
    gradients themselves.

    Args:
        hidden_states: (..., D) float32, bfloat16 or float64, already multiplied by hidden_scale.
        centers: (V, D), the rows of the unembedding.
        labels: (...,) int64 class ids in [0, V), or ignore_index.
        exponent: harmonic exponent n on the distance (arXiv 2502.01628, section 2); softmax heads ignore it.
        similarity: "euclidean" or "dot". normalization: "harmax" or "softmax".
        reduction: "mean" over targets that are not ignored (0 if there are none), "sum", or "none" (shape of labels, 0 where ignored).

    Returns: float32 loss (float64 for float64 inputs). Under autocast the operands are rounded to autocast's dtype, and
        distances are formed in float32 from the rounded operands.
    Raises:
        ValueError: wrong shapes, labels out of range (checked on the CPU; CUDA asserts), float16, unknown options.
        RuntimeError: second backward ("mean", "sum"), or double backward.
    """
    spec = HeadSpec(float(exponent), similarity, normalization).check()
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if centers.ndim != 2 or hidden_states.shape[-1] != centers.shape[1] or hidden_states.shape[:-1] != labels.shape:
        raise ValueError(
            "expected hidden_states (..., D), centers (V, D) and labels (...), got "
            f"{tuple(hidden_states.shape)}, {tuple(centers.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: expected integer class ids, got {labels.dtype}")
    x, w = _operands(hidden_states.reshape(-1, hidden_states.shape[-1]), centers)
    y = labels.reshape(-1).long()
    kept = y != ignore_index
    in_range = (~kept | ((y >= 0) & (y < w.shape[0]))).all()
    if y.is_cuda:
        torch._assert_async(in_range, "a label is outside [0, V)")  # no synchronisation
    elif not in_range:
        bad = y[kept & ((y < 0) | (y >= w.shape[0]))][0].item()
        raise ValueError(f"labels: expected ids in [0, {w.shape[0]}) or ignore_index {ignore_index}, got {bad}")
    y = y.where(kept, 0)
    row_weight = kept.to(torch.float64 if x.dtype == torch.float64 else torch.float32)

    if not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
        with _no_autocast(x):
            losses, _, _ = _losses_and_gradients(x, w, y, row_weight, spec, with_gradients=False)
            losses = losses * row_weight
    elif reduction == "none":
        losses = _TokenLosses.apply(x, w, y, row_weight, spec)
    else:
        losses = _ReducedLoss.apply(x, w, y, row_weight, spec)
    if reduction == "none":
        return losses.view(labels.shape)
    total = losses.sum()
    return total / row_weight.sum().clamp_min(1) if reduction == "mean" else total


class HarmonicHead(nn.Module):
    """Unembedding whose rows are class centers. `weight` is (V, D), tied to the token embedding by default.

    Not an nn.Linear: transformers would replace one by a plain nn.Linear when the vocabulary is resized.
    """

    def __init__(
        self,
        n_embd: int,
        vocab_size: int,
        *,
        exponent: float,
        similarity: str = "euclidean",
        normalization: str = "harmax",
        hidden_scale: float = 1.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, n_embd))
        self.spec = HeadSpec(exponent, similarity, normalization).check()
        self.hidden_scale = hidden_scale

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits (..., V), or with labels (...) the loss in nats (see `harmonic_cross_entropy`).

        The standard head returns raw dot products, as GPT-2 does. The others return log-probabilities: their z is defined up to
        a constant a row, and processors that look at the sign of a logit (repetition penalty) need all of one sign.
        """
        hidden_states = hidden_states * self.hidden_scale  # (..., D)
        if labels is not None:
            return harmonic_cross_entropy(hidden_states, self.weight, labels, reduction=reduction, **self.spec._asdict())
        logits = head_logits(hidden_states, self.weight, **self.spec._asdict())
        if self.spec.similarity == "dot" and self.spec.normalization == "softmax":
            return logits
        return logits.log_softmax(-1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self.spec}, hidden_scale={self.hidden_scale:.4g}"
