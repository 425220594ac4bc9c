"""The loss of a head that never builds the (N, V) logits: a chunk of tokens at a time, gradients in the forward pass.

Symbols of the shape comments: N tokens, D hidden size, V classes. Needs only torch and the files beside it that it
imports: heads.py and harmonic_*.py can be copied into any project.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .harmonic_elements import Formula, LossAndGradients, Needs
from .harmonic_logits import (
    PAIRS_BYTES,
    full_float32,
    no_autocast,
    operand_dtype,
    pair_logits,
    refuse_dtensors,
    widened,
)
from .harmonic_loss_cpu import chunked
from .harmonic_loss_cuda import chunked_cuda, element_pass_of
from .heads import LOG2_E, Head, Values, find_head, find_pair

IMPLEMENTATIONS = ("auto", "torch", "triton")
# A head without a product is refused for more classes than this, unless allow_slow is set
MAX_SLOW_CLASSES = 10_000


def losses_and_gradients(
    x: Tensor,
    w: Tensor,
    labels: Tensor,
    row_weight: Tensor,
    formula: Formula,
    dtype: torch.dtype,
    needs: Needs,
    impl: str = "auto",
) -> LossAndGradients:
    """Loss of every token, and the gradients of sum_i row_weight_i * loss_i, a chunk of tokens at a time.

    Args:
        x (N, D), w (V, D): operands, rounded to `dtype` here, so that the gradients of float32 parameters are not.
        labels (N,): within [0, V). row_weight (N,): float, 0 for ignored tokens.
    Returns: everything in float32 (float64).
    """
    with no_autocast(x), full_float32():
        if x.is_cuda or impl == "triton":
            element_pass = element_pass_of(impl, dtype)
            return chunked_cuda(x.to(dtype), w, labels, row_weight, formula, needs, element_pass)
        if isinstance(formula.rate, Tensor):
            formula = formula._replace(rate=formula.rate.item())
        return chunked(x.to(dtype), w.to(dtype), labels, row_weight, formula, needs)


def _refuse_double_backward() -> None:
    # Gradient mode is on inside backward exactly when create_graph=True asked for it. Without this check the gradients
    # would be constants, and a penalty on them would silently do nothing.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "double backward (create_graph=True) through a head's loss is not supported; "
            "use F.cross_entropy(head_logits(...), labels), which materialises the logits"
        )


class _ReducedLoss(torch.autograd.Function):
    """Sum of row_weight * loss. Gradients are formed in forward and scaled in backward: three GEMMs in all, like a
    linear head."""

    @staticmethod
    def forward(ctx, x, w, bias, rate, labels, row_weight, formula, dtype, impl):
        formula = formula._replace(bias=bias, rate=rate)
        losses, *ctx.gradients = losses_and_gradients(
            x, w, labels, row_weight, formula, dtype, Needs(*ctx.needs_input_grad[:4]), impl
        )
        ctx.like_rate = rate
        return (losses * row_weight).sum()

    @staticmethod
    def backward(ctx, grad_output):
        _refuse_double_backward()
        if ctx.gradients is None:
            raise RuntimeError(
                "backward ran twice through the same harmonic loss. Its gradients are formed in the forward pass and "
                'given away once: compute the loss again, or use reduction="none", which recomputes in backward.'
            )
        gradients, ctx.gradients = ctx.gradients, None
        grad_x, grad_w, grad_bias, grad_rate = (
            None if gradient is None else gradient.mul_(grad_output) for gradient in gradients
        )
        return grad_x, grad_w, grad_bias, _as_rate(grad_rate, ctx.like_rate), None, None, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Every token's loss. Backward needs the upstream vector and recomputes, so it costs one more GEMM than
    `_ReducedLoss`."""

    @staticmethod
    def forward(ctx, x, w, bias, rate, labels, row_weight, formula, dtype, impl):
        is_tensor = isinstance(rate, Tensor)
        ctx.save_for_backward(x, w, bias, labels, row_weight, rate if is_tensor else None)
        ctx.rate, ctx.formula, ctx.dtype, ctx.impl = None if is_tensor else rate, formula, dtype, impl
        formula = formula._replace(bias=bias, rate=rate)
        return losses_and_gradients(x, w, labels, row_weight, formula, dtype, Needs(), impl).losses * row_weight

    @staticmethod
    def backward(ctx, grad_output):
        _refuse_double_backward()
        x, w, bias, labels, row_weight, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        formula = ctx.formula._replace(bias=bias, rate=rate)
        _, grad_x, grad_w, grad_bias, grad_rate = losses_and_gradients(
            x, w, labels, row_weight * grad_output, formula, ctx.dtype, Needs(*ctx.needs_input_grad[:4]), ctx.impl
        )
        return grad_x, grad_w, grad_bias, _as_rate(grad_rate, rate), None, None, None, None, None


def _as_rate(gradient: Tensor | None, rate: float | Tensor) -> Tensor | None:
    return None if gradient is None or not isinstance(rate, Tensor) else gradient.to(rate.dtype).view(rate.shape)


def _check_impl(impl: str, hidden_states: Tensor, dtype: torch.dtype) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: expected one of {IMPLEMENTATIONS}, got {impl!r}")
    if impl != "triton":
        return
    from .harmonic_kernels import INTERPRETED

    if dtype == torch.float64 or not (hidden_states.is_cuda or INTERPRETED):
        raise ValueError(
            f'impl="triton" is for float32 and bfloat16 on CUDA, got {dtype} on {hidden_states.device}; take "auto"'
        )


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
    impl: str = "auto",
) -> Tensor:
    """`head_cross_entropy` of the four heads of the paper's ablation, named by its two choices.

    Args:
        exponent: harmonic exponent n on the distance (arXiv 2502.01628, section 2); softmax heads ignore it.
        similarity: "euclidean" or "dot". normalization: "harmax" or "softmax". The defaults are the harmonic head.

    Everything else, with shapes, dtypes, what is returned and what is raised, is as for `head_cross_entropy`.
    """
    head, constants = find_pair(similarity, normalization, exponent)
    return head_cross_entropy(
        hidden_states,
        centers,
        labels,
        head=head,
        reduction=reduction,
        ignore_index=ignore_index,
        impl=impl,
        **constants,
    )


@torch.compiler.disable
def head_cross_entropy(
    hidden_states: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    head: str = "harmonic",
    log_prior: Tensor | None = None,
    token_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    impl: str = "auto",
    allow_slow: bool = False,
    **constants: float | Tensor,
) -> Tensor:
    """Cross-entropy of any head of `heads.HEADS`, in nats, without building the (N, V) logits.

    Equal to `F.cross_entropy(head_logits(hidden_states, centers, ...), labels)`; memory is one chunk (CHUNK_BYTES; on
    CUDA up to CUDA_CHUNK_BYTES and g) and the gradients themselves, and for heads that prepare their operands a copy of
    both. float32 products are made in float32, whatever the process allows elsewhere (TF32). Frozen operands cost
    nothing.

    Args:
        hidden_states: (..., D) float32, bfloat16 or float64, without gradients float16 too; already multiplied by
            hidden_scale.
        centers: (V, D), the rows of the unembedding.
        labels: (...,) int64 class ids in [0, V), or ignore_index.
        head: name of the head; constants: its constants and weights (docs/how-to/heads.md). A constant that is a
            tensor, () or (1,), gets a gradient.
        log_prior: (V,), added to the logits: p_j is proportional to exp(log_prior_j) times what the head says.
        token_weights: shape of labels, not negative; each token's loss is multiplied by its weight. Without gradient.
        label_smoothing: this share of the target's probability is spread over all classes, as in F.cross_entropy.
        z_loss: coefficient of logsumexp(z)^2, added to each token's loss (PaLM, section 5).
        reduction: "mean" over targets that are not ignored (0 if there are none; with token_weights the weighted mean),
            "sum", or "none" (shape of labels, 0 where ignored).
        impl: what works between the products on CUDA. "auto": a Triton kernel, and PyTorch's operators with one warning
            where it cannot be had, or silently where it does not know the head or an option; "triton" raises where it
            cannot be had; "torch": PyTorch's operators.
        allow_slow: permit a head without a matrix product for more than MAX_SLOW_CLASSES classes.

    Returns:
        float32 loss (float64 for float64 inputs). Under autocast the operands are rounded to autocast's dtype, and
        distances are formed in float32 from the rounded operands.

    Raises:
        ValueError: an unknown head or constant, or a constant out of range; wrong shapes, labels out of range (checked
            on the CPU; CUDA asserts), gradients in float16, DTensors (a shard is not the whole matrix), unknown
            options, impl="triton" for float64 or off CUDA; too many classes for a head without a product.
        RuntimeError: second backward ("mean", "sum"), or double backward.
    """
    definition = find_head(head)
    _check_arguments(hidden_states, centers, labels, log_prior, token_weights, label_smoothing, z_loss, reduction)
    values = definition.values(centers.shape[1], constants)
    refuse_dtensors(hidden_states, centers)
    dtype = operand_dtype(hidden_states, centers)
    learned = [value for value in (log_prior, *values.values()) if isinstance(value, Tensor)]
    differentiated = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (hidden_states, centers, *learned)
    )
    if differentiated and dtype == torch.float16:
        raise ValueError(
            "the loss is trained in float32, float64 or bfloat16, got float16: its gradients are formed in the forward "
            "pass, where float16 loss scaling cannot reach them. Use bfloat16 (mixed_precision=bf16), or evaluate "
            "under torch.no_grad()."
        )
    _check_impl(impl, hidden_states, dtype)
    x, y = hidden_states.reshape(-1, hidden_states.shape[-1]), labels.reshape(-1).long()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y, row_weight = _targets(y, centers.shape[0], ignore_index, wide)
    if token_weights is not None:
        row_weight = row_weight * token_weights.detach().reshape(-1).to(wide)
    # The gradient of the rate is the exponent's or the temperature's, by autograd; so is that of what prepares operands
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    if definition.form is None:
        _check_slow(definition, len(x), centers, allow_slow)
        losses = _pair_losses(definition, x, centers, y, values, log_prior, options) * row_weight
    else:
        rate = definition.form.rate(values)
        bias = None if log_prior is None else log_prior.to(wide) * LOG2_E
        formula = Formula(*definition.form, 1.0, None, label_smoothing, z_loss)
        with no_autocast(x):
            x, w = definition.operands(*_wide_unless_plain(definition, x, centers), values)
        dtype = wide if definition.float32 else dtype
        if not differentiated:
            formula = formula._replace(rate=rate, bias=bias)
            losses = losses_and_gradients(x, w, y, row_weight, formula, dtype, Needs(), impl).losses * row_weight
        else:
            function = _TokenLosses if reduction == "none" else _ReducedLoss
            losses = function.apply(x, w, bias, rate, y, row_weight, formula, dtype, impl)
    if reduction == "none":
        return losses.view(labels.shape)
    total = losses.sum()
    if reduction == "sum":
        return total
    weight = row_weight.sum()
    return total / (weight.clamp_min(1) if token_weights is None else weight.where(weight > 0, 1))


def _wide_unless_plain(head: Head, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return (x, w) if head.prepare is None else (widened(x), widened(w))


def _check_arguments(
    hidden_states: Tensor,
    centers: Tensor,
    labels: Tensor,
    log_prior: Tensor | None,
    token_weights: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if centers.ndim != 2 or hidden_states.shape[-1] != centers.shape[1] or hidden_states.shape[:-1] != labels.shape:
        raise ValueError(
            "expected hidden_states (..., D), centers (V, D) and labels (...), got "
            f"{tuple(hidden_states.shape)}, {tuple(centers.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: expected integer class ids, got {labels.dtype}")
    if log_prior is not None and log_prior.shape != centers.shape[:1]:
        raise ValueError(f"log_prior: expected one number a class, ({len(centers)},), got {tuple(log_prior.shape)}")
    if token_weights is not None and token_weights.shape != labels.shape:
        raise ValueError(
            f"token_weights: expected the shape of labels, {tuple(labels.shape)}, got {tuple(token_weights.shape)}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number from 0 to less than 1, got {label_smoothing!r}")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss: expected 0 or a positive number, got {z_loss!r}")


def _targets(y: Tensor, n_classes: int, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(labels within [0, V), weights: 0 where ignored, else 1). Raises ValueError for a label out of range."""
    kept = y != ignore_index
    in_range = (~kept | ((y >= 0) & (y < n_classes))).all()
    if y.is_cuda:
        torch._assert_async(in_range, "a label is outside [0, V)")  # no synchronisation
    elif not in_range:
        bad = y[kept & ((y < 0) | (y >= n_classes))][0].item()
        raise ValueError(f"labels: expected ids in [0, {n_classes}) or ignore_index {ignore_index}, got {bad}")
    return y.where(kept, 0), kept.to(dtype)


def _check_slow(head: Head, n_tokens: int, centers: Tensor, allowed: bool) -> None:
    """Raises ValueError for a head without a product and many classes."""
    n_classes, width = centers.shape
    if n_classes <= MAX_SLOW_CLASSES or allowed:
        return
    numbers = n_tokens * n_classes * width
    raise ValueError(
        f"{head.name} is no function of a matrix product: {n_tokens:,} tokens x {n_classes:,} classes x {width} are "
        f"{numbers:.2g} differences, about ten times over with the gradients: {numbers * 10 / 1e9 / 60:.3g} minutes a "
        f"step at 1e9 a second, and {PAIRS_BYTES / 2**20:.0f} MiB at a time several times over. It is for small "
        f"vocabularies (up to {MAX_SLOW_CLASSES:,}); allow_slow=True if you mean it"
    )


def _pair_losses(
    head: Head, x: Tensor, w: Tensor, y: Tensor, values: Values, log_prior: Tensor | None, options: dict[str, float]
) -> Tensor:
    """Losses (N,) of a head without a product, by blocks of tokens that are computed again in backward."""
    rows = max(1, PAIRS_BYTES // (w.numel() * 4))

    def block_losses(x: Tensor, y: Tensor) -> Tensor:
        return dense_losses(pair_logits(head, x, w, values, log_prior), y, **options)

    parts = zip(x.split(rows), y.split(rows), strict=True)
    return torch.cat([checkpoint(block_losses, *part, use_reentrant=False) for part in parts])


def dense_losses(z: Tensor, labels: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """Losses (N,) of materialised logits (N, V), by autograd: what `head_cross_entropy` is per token."""
    losses = F.cross_entropy(z, labels, reduction="none", label_smoothing=label_smoothing)
    return losses + z_loss * z.logsumexp(-1).square() if z_loss else losses
