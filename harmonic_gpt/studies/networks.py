"""The paper's small networks (section 3), many at a time: every parameter has a leading dimension of M models.

Shapes: M models, B examples, T tokens, V vocabulary, D = 16 embedding size. Initialisation and layout follow the
published code: the MLPs tie the unembedding to the embedding, the transformer does so with a dot-product head only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_gpt.model.harmonic_logits import head_logits

D = 16
MLP_HIDDEN = 100
LAYERS, HEADS, TRANSFORMER_HIDDEN = 2, 2, 4 * D
ARCHITECTURES = ("mlp", "transformer")
# similarity, normalization of head_logits; the first four are the 2 x 2 of section 6
HEAD_KINDS = {
    "standard": ("dot", "softmax"),
    "harmonic": ("euclidean", "harmax"),
    "dot_harmax": ("dot", "harmax"),
    "euclidean_softmax": ("euclidean", "softmax"),
    "spherical": ("dot", "softmax"),
    "contrastive": ("euclidean", "softmax"),
}
SPHERICAL_EPS = 1e-4
CONTRASTIVE_MARGIN = 1.0

Parameters = dict[str, Tensor]


def initial_parameters(architecture: str, head: str, vocab_size: int, tokens: int, seeds: list[int]) -> Parameters:
    """Stacked leaf parameters, model m made from seeds[m] alone."""
    models = [_one_model(architecture, head, vocab_size, tokens, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([model[name] for model in models]).requires_grad_() for name in models[0]}


def _one_model(architecture: str, head: str, vocab_size: int, tokens: int, generator: torch.Generator) -> Parameters:
    def uniform(*shape: int, bound: float) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound

    def linear(name: str, fan_in: int, fan_out: int, bias_bound: float | None = None) -> Parameters:
        bound = fan_in**-0.5  # nn.Linear's
        bias = uniform(1, fan_out, bound=bound if bias_bound is None else bias_bound)
        return {f"{name}.weight": uniform(fan_in, fan_out, bound=bound), f"{name}.bias": bias}

    if architecture == "mlp":
        # The code's embedding is the tied nn.Linear's weight: uniform, not the normal of an embedding
        embedding = {"embedding": uniform(vocab_size, D, bound=D**-0.5)}
        return embedding | linear("hidden", tokens * D, MLP_HIDDEN) | linear("out", MLP_HIDDEN, D)
    model = {
        "embedding": torch.randn(vocab_size, D, generator=generator) * D**-0.5,
        "positions": torch.randn(1, tokens, D, generator=generator),
    }
    if not _is_tied(architecture, head):
        model["centers"] = uniform(vocab_size, D, bound=D**-0.5)
    for layer in range(LAYERS):
        model |= {  # nn.TransformerEncoderLayer's start
            f"{layer}.qkv.weight": uniform(D, 3 * D, bound=math.sqrt(6 / (D + 3 * D))),
            f"{layer}.qkv.bias": torch.zeros(1, 3 * D),
            **linear(f"{layer}.proj", D, D, bias_bound=0.0),
            **linear(f"{layer}.up", D, TRANSFORMER_HIDDEN),
            **linear(f"{layer}.down", TRANSFORMER_HIDDEN, D),
        }
        for norm in ("norm1", "norm2"):
            model |= {f"{layer}.{norm}.weight": torch.ones(1, D), f"{layer}.{norm}.bias": torch.zeros(1, D)}
    return model


def _is_tied(architecture: str, head: str) -> bool:
    return architecture == "mlp" or HEAD_KINDS[head][0] == "dot" or head == "contrastive"  # which has no unembedding


def hidden_states(p: Parameters, inputs: Tensor) -> Tensor:
    """The representations that the head sees, (M, B, D), of token ids (M, B, T)."""
    m, b, t = inputs.shape
    vocab_size = p["embedding"].shape[1]
    rows = inputs + (torch.arange(m) * vocab_size)[:, None, None]
    x = F.embedding(rows, p["embedding"].view(m * vocab_size, D))  # (M, B, T, D)
    if "hidden.weight" in p:
        return _linear(p, "out", F.silu(_linear(p, "hidden", x.view(m, b, t * D))))
    x = x + p["positions"]
    for layer in range(LAYERS):
        # Only the last position reaches the head: the last layer computes no other
        x = _layer(p, layer, x, queries=1 if layer == LAYERS - 1 else t)
    return x.squeeze(2)


def _linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return torch.baddbmm(p[f"{name}.bias"], x, p[f"{name}.weight"])


def _layer(p: Parameters, layer: int, x: Tensor, queries: int) -> Tensor:
    """Post-norm encoder layer without mask, plus the code's extra residual, for the last `queries` positions. x: (M, B,
    T, D)."""
    m, b, t, _ = x.shape
    q, k, v = _linear(p, f"{layer}.qkv", x.reshape(m, b * t, D)).view(m, b, t, 3, HEADS, D // HEADS).unbind(3)
    x = x[:, :, t - queries :]
    scores = (q[:, :, t - queries :, None] * k[:, :, None]).sum(-1) * (D // HEADS) ** -0.5  # (M, B, queries, T, HEADS)
    # Products and sums instead of a batched matmul: T is 2 or 3, where a GEMM per head and example costs more
    attended = (scores.softmax(3)[..., None] * v[:, :, None]).sum(3).reshape(m, b * queries, D)
    y = _norm(p, f"{layer}.norm1", x.reshape(m, b * queries, D) + _linear(p, f"{layer}.proj", attended))
    y = _norm(p, f"{layer}.norm2", y + _linear(p, f"{layer}.down", F.relu(_linear(p, f"{layer}.up", y))))
    return x + y.view(m, b, queries, D)


def _norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,)) * p[f"{name}.weight"] + p[f"{name}.bias"]


def logits(head: str, hidden: Tensor, centers: Tensor, exponents: Tensor) -> Tensor:
    """(M, B, V) whose softmax are the class probabilities. exponents: (M,), each model's n on the distance.

    Every head is the product's `head_logits`. It takes one exponent; z is proportional to it, so n_m z of exponent 1 is
    model m's.
    """
    similarity, normalization = HEAD_KINDS[head]
    z = head_logits(hidden, centers, exponent=1.0, similarity=similarity, normalization=normalization)
    if normalization == "harmax":
        return z * exponents[:, None, None]
    if head == "spherical":
        # Spherical softmax (de Brebisson and Vincent, arXiv 1511.05042) of dot products: p ~ s^2 / ||s||^2 + eps
        return torch.log(F.normalize(z, dim=-1).square() + SPHERICAL_EPS)
    return z


def contrastive_loss(hidden: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(M,) pairwise contrastive losses of representations (M, B, D), labels (M, B): mean d^2 of pairs of one class,
    plus mean max(0, margin - d)^2 of the others. Examples of weight (M, B) zero make no pairs."""
    d = -head_logits(hidden, hidden, exponent=1.0, normalization="softmax")  # (M, B, B)
    real = (weight > 0).to(d.dtype)
    pairs = real[:, :, None] * real[:, None, :] * (1 - torch.eye(d.shape[1]))
    same = (labels[:, :, None] == labels[:, None, :]) * pairs
    other = pairs - same

    def mean(values: Tensor, of: Tensor) -> Tensor:
        return (values * of).sum((1, 2)) / of.sum((1, 2)).clamp_min(1)

    return mean(d.square(), same) + mean((CONTRASTIVE_MARGIN - d).clamp_min(0).square(), other)


def class_means(hidden: Tensor, labels: Tensor, weight: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Means (M, V, D) of the representations of each class, and which classes (M, V) have examples of positive
    weight."""
    one_hot = F.one_hot(labels, vocab_size).to(hidden.dtype) * (weight > 0)[..., None]
    counts = one_hot.sum(1)  # (M, V)
    return one_hot.mT @ hidden / counts.clamp_min(1)[..., None], counts > 0
