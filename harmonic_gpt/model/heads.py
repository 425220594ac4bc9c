"""What a head is: one `Head` a name. Loss, logits, kernels, model, model card and tests read it from HEADS.

A head turns a hidden state x (D,) and the centers w_j (V, D) into logits z_j; p = softmax(z), the loss is -log p_y.
Every entry says so twice. `logit` is the formula, pair by pair: the oracle of the tests, and what heads without a
matrix product are computed by. `form` is the same on one product, x'.w'_j of prepared operands, and is what training
runs: an inner quantity (dot product or squared distance) and a curve t(u) of it, with z = rate t(u).

Only torch is imported here. A head of your own is one more entry: docs/how-to/heads.md.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Values = Mapping[str, Any]  # float | Tensor: a head's constants and weights, by name
LOG2_E = math.log2(math.e)
# Distances of 0 have no logarithm: formulas raise them to this
SMALLEST_DISTANCE = math.sqrt(torch.finfo(torch.float32).tiny)
# eps of the follow-up's code: Canberra's (1e-4) and Bray-Curtis's (1e-3) denominators
CANBERRA_EPS, BRAY_CURTIS_EPS = 1e-4, 1e-3

BAEK = "Baek et al., arXiv 2502.01628"
MILLER_GOLUB = "Miller-Golub et al., arXiv 2603.10225"


@dataclass(frozen=True)
class Constant:
    """A positive number of a head: where it starts (a number, or a function of D) and the open interval it must stay
    in, learned or not."""

    start: float | Callable[[int], float]
    low: float
    high: float
    learnable: bool = True

    def default(self, width: int) -> float:
        return self.start(width) if callable(self.start) else self.start

    def check(self, name: str, value: float) -> float:
        """Raises ValueError for a value outside of the interval."""
        if not self.low < value < self.high:  # NaN is outside
            raise ValueError(f"{name}: expected a number between {self.low:g} and {self.high:g}, got {value!r}")
        return value


class Form(NamedTuple):
    """How z comes from one product of the prepared operands: z log2(e) = rate t(u).

    quantity: "dot", u = x'.w'; "squared_distance", u = ||x' - w'||^2; "lorentz", u = 2 (cosh d - 1) on the hyperboloid
        (see `lifted`), computed as a squared distance is.
    curve: "log", t = log2 |u|; "root", t = sqrt(u); "linear", t = u; "log_arcosh", t = log2 arcosh(1 + u / 2).
    """

    quantity: str
    curve: str

    def rate(self, values: Values) -> float | Tensor:
        """d(z log2 e) / dt, from the exponent (logarithmic curves) or the temperature. Negative for distances."""
        sign = 1 if self.quantity == "dot" else -1
        if self.curve in ("root", "linear"):
            return sign * LOG2_E / values["temperature"]
        n = values["exponent"]  # on the distance, not its square
        return sign * n / 2 if (self.quantity, self.curve) == ("squared_distance", "log") else sign * n


@dataclass(frozen=True)
class Weight:
    """A tensor that belongs to a head and is always learned. start(D, values) makes it."""

    start: Callable[[int, Values], Tensor]


@dataclass(frozen=True)
class Head:
    """One way from hidden states and centers to logits.

    Args:
        meaning: what p_j is proportional to; constants by name.
        source: who proposed it.
        logit: (x, w, values) -> z for x (..., D) and w (..., D) that broadcast against each other. The definition.
        form: the same on one product; None: there is none, and the head takes time and memory of N V D numbers.
        prepare: (x, w, values) -> (x', w'), differentiable, on (N, D) and (V, D); identity by default.
        constants, weights: names are keywords of `head_cross_entropy`, and may be asked for in a run's config.
        scales: (hidden_scale, center_std) that make a fresh model start well, from D (docs/results/prediction.md).
        float32: products of prepared operands in float32 even under autocast.
    """

    name: str
    meaning: str
    source: str
    logit: Callable[[Tensor, Tensor, Values], Tensor]
    form: Form | None = None
    prepare: Callable[[Tensor, Tensor, Values], tuple[Tensor, Tensor]] | None = None
    constants: Mapping[str, Constant] = field(default_factory=dict)
    weights: Mapping[str, Weight] = field(default_factory=dict)
    scales: Callable[[int], tuple[float, float]] = lambda width: (width**-0.5, width**-0.5)
    sees_scale: bool = True  # False: hidden_scale changes nothing
    float32: bool = False

    @property
    def euclidean(self) -> bool:
        """By the distance between hidden states and centers themselves, so that the centers are points of that
        space."""
        return self.form is not None and self.form.quantity == "squared_distance" and self.prepare is None

    def numbers(self, width: int, given: Mapping[str, float]) -> dict[str, float]:
        """All constants: those given and the others' defaults. Raises ValueError for an unknown name, or a number
        outside of its interval."""
        self._check_names(given, self.constants)
        return {
            name: constant.check(name, float(given.get(name, constant.default(width))))
            for name, constant in self.constants.items()
        }

    def values(self, width: int, given: Values) -> dict[str, float | Tensor]:
        """Constants and weights for a formula. Numbers are checked, tensors are not looked into.

        Raises ValueError: as `numbers`, or a weight is missing.
        """
        self._check_names(given, {**self.constants, **self.weights})
        if missing := self.weights.keys() - given.keys():
            raise ValueError(f"{self.name} needs {', '.join(sorted(missing))}")
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
        return {**self.numbers(width, numbers), **tensors}

    def _check_names(self, given: Mapping, known: Mapping) -> None:
        if unknown := given.keys() - known.keys():
            names = ", ".join(known) or "none"
            raise ValueError(f"{self.name} has no constant {', '.join(sorted(unknown))}; its constants: {names}")

    def check_learned(self, learn: Iterable[str], prior: bool) -> list[str]:
        """The names in `learn`, each once, in an order of their own. Raises ValueError for what cannot be learned."""
        able = [name for name, constant in self.constants.items() if constant.learnable]
        able += ["hidden_scale"] * self.sees_scale + ["prior"] * prior
        for name in learn:
            if name in able:
                continue
            why = ""
            if name == "prior":
                why = " without a prior"
            elif name == "hidden_scale":
                why = ", which it does not depend on"
            raise ValueError(f"learn: {self.name} cannot learn {name!r}{why}; it can: {', '.join(able) or 'nothing'}")
        return [name for name in able if name in set(learn)]

    def operands(self, x: Tensor, w: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """What the product takes: x and w themselves, or prepared."""
        return (x, w) if self.prepare is None else self.prepare(x, w, values)


@dataclass(frozen=True)
class HeadSpec:
    """A head by name and its numbers: what a reader of a model wants to know of its head."""

    name: str
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def exponent(self) -> float | None:
        """n on the distance; None: the head has none."""
        return self.constants.get("exponent")

    @property
    def euclidean(self) -> bool:
        """`Head.euclidean`."""
        return find_head(self.name).euclidean


def distance(x: Tensor, w: Tensor, order: float = 2.0) -> Tensor:
    """(sum |x - w|^order)^(1 / order) over the last dimension, raised to SMALLEST_DISTANCE."""
    return torch.linalg.vector_norm(x - w, ord=order, dim=-1).clamp_min(SMALLEST_DISTANCE)


def harmonic(d: Tensor, values: Values) -> Tensor:
    """-n log d of distances d: p_j is proportional to d_j^-n."""
    return -values["exponent"] * torch.log(d.clamp_min(SMALLEST_DISTANCE))


class _Unit(torch.autograd.Function):
    """`unit` in two passes over the rows each way; autograd's own derivative takes six, and (V, D) is large."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        inverse = torch.where(norms > 0, norms, math.inf).reciprocal()
        return rows * inverse, inverse

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004  torch names its arguments
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, gradient, gradient_of_inverse):
        units, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, units).unsqueeze(-1) + gradient_of_inverse * inverse
        return (gradient * inverse).addcmul_(units, along * inverse, value=-1)


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1. A row of zeros stays one, and gets no gradient."""
    return _Unit.apply(rows)[0]


def lifted(rows: Tensor, curvature: float | Tensor, sign: int) -> Tensor:
    """Points of the hyperboloid of curvature -c: sqrt(c) rows, and as one more coordinate sign * (x_0 - 1).

    x_0 = sqrt(1 + c ||row||^2) is the time coordinate. With a sign of -1 on one side the product of two lifted rows is
    x.w - (x_0 - 1)(w_0 - 1), and u = 2 (cosh d - 1) = 2 (x_0 - 1) + 2 (w_0 - 1) - 2 product: no 1 has to cancel, so
    that short distances keep their digits.
    """
    rows = rows * curvature**0.5
    squared = rows.square().sum(-1, keepdim=True)
    return torch.cat([rows, sign * squared / (1 + (1 + squared).sqrt())], -1)


def lorentz_distance(x: Tensor, w: Tensor, values: Values) -> Tensor:
    """Geodesic distance times sqrt(c): arcosh(1 + v) = 2 arsinh(sqrt(v / 2)), v from differences of coordinates."""
    x, w = x * values["curvature"] ** 0.5, w * values["curvature"] ** 0.5
    time_x, time_w = (torch.sqrt(1 + rows.square().sum(-1)) for rows in (x, w))
    v = ((x - w).square().sum(-1) - (time_x - time_w).square()) / 2
    return 2 * torch.asinh((v / 2).clamp_min(SMALLEST_DISTANCE**2).sqrt())


def _low_rank(rows: Tensor, values: Values) -> Tensor:
    return rows + (rows @ values["down"].mT) @ values["up"].mT


EXPONENT = Constant(math.sqrt, 1e-3, 1e5)  # sqrt(D): arXiv 2502.01628, section 2
TEMPERATURE = Constant(1.0, 1e-5, 1e5)
HIDDEN_SCALE = Constant(1.0, 1e-6, 1e6)  # of every head
SQUARED_LOG = Form("squared_distance", "log")
DOT_SCALES = lambda width: (1.0, width**-0.5)  # noqa: E731  logits of unit variance

_ALL = (
    Head(
        "harmonic",
        "distance to its center to the power -n, ‖x − w_j‖⁻ⁿ",
        BAEK,
        lambda x, w, c: harmonic(distance(x, w), c),
        SQUARED_LOG,
        constants={"exponent": EXPONENT},
    ),
    Head(
        "standard",
        "exp(x·w_j / temperature), as in GPT-2",
        "the softmax of dot products",
        lambda x, w, c: (x * w).sum(-1) / c["temperature"],
        Form("dot", "linear"),
        constants={"temperature": TEMPERATURE},
        scales=DOT_SCALES,
    ),
    Head(
        "euclidean_softmax",
        "exp(−‖x − w_j‖ / temperature) (an ablation)",
        f"{BAEK}, section 6",
        lambda x, w, c: -distance(x, w) / c["temperature"],
        Form("squared_distance", "root"),
        constants={"temperature": TEMPERATURE},
        scales=lambda _: (1.0, 1.0),  # -d sees a common scale: classes' distances should differ by about 1
    ),
    Head(
        "dot_harmax",
        "|x·w_j|ⁿ (an ablation)",
        f"{BAEK}, section 6",
        lambda x, w, c: c["exponent"] * (x * w).sum(-1).abs().clamp_min(SMALLEST_DISTANCE).log(),
        Form("dot", "log"),
        constants={"exponent": EXPONENT},
        scales=DOT_SCALES,
    ),
    Head(
        "cosine_harmonic",
        "‖x/‖x‖ − w_j/‖w_j‖‖⁻ⁿ, which is (2 − 2 cos(x, w_j))^(−n/2)",
        MILLER_GOLUB,  # there the exponent acts on 1 - cos, half the squared distance: n is twice theirs
        lambda x, w, c: harmonic(distance(unit(x), unit(w)), c),
        SQUARED_LOG,
        lambda x, w, _: (unit(x), unit(w)),
        constants={"exponent": EXPONENT},
        scales=DOT_SCALES,
        sees_scale=False,
    ),
    Head(
        "normalized_dot",
        "exp(cos(x, w_j) / temperature)",
        "nGPT, Loshchilov et al., arXiv 2410.01131 (which learns one temperature a class)",
        lambda x, w, c: (unit(x) * unit(w)).sum(-1) / c["temperature"],
        Form("dot", "linear"),
        lambda x, w, _: (unit(x), unit(w)),
        constants={"temperature": Constant(lambda width: width**-0.5, 1e-5, 1e5)},  # logits of unit variance
        scales=DOT_SCALES,
        sees_scale=False,
    ),
    Head(
        "mahalanobis_diagonal",
        "‖a ⊙ (x − w_j)‖⁻ⁿ, a learned factor a for each coordinate",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(distance(c["factors"] * x, c["factors"] * w), c),
        SQUARED_LOG,
        lambda x, w, c: (x * c["factors"], w * c["factors"]),
        constants={"exponent": EXPONENT},
        weights={"factors": Weight(lambda width, _: torch.ones(width))},
    ),
    Head(
        "mahalanobis_low_rank",
        "‖(1 + U V)(x − w_j)‖⁻ⁿ, U V learned, of rank `rank`",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(distance(_low_rank(x - w, c), torch.zeros_like(w)), c),
        SQUARED_LOG,
        lambda x, w, c: (_low_rank(x, c), _low_rank(w, c)),
        constants={"exponent": EXPONENT, "rank": Constant(8, 0, 2**20, learnable=False)},
        # U starts at 0: the identity, and yet with a gradient
        weights={
            "up": Weight(lambda width, c: torch.zeros(width, int(c["rank"]))),
            "down": Weight(lambda width, c: torch.randn(int(c["rank"]), width) / math.sqrt(width)),
        },
    ),
    Head(
        "mahalanobis_full",
        "‖A (x − w_j)‖⁻ⁿ, A a learned matrix",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(torch.linalg.vector_norm((x - w) @ c["matrix"].mT, dim=-1), c),
        SQUARED_LOG,
        lambda x, w, c: (x @ c["matrix"].mT, w @ c["matrix"].mT),
        constants={"exponent": EXPONENT},
        weights={"matrix": Weight(lambda width, _: torch.eye(width))},
    ),
    Head(
        "lorentz_harmonic",
        "hyperbolic distance to the power -n, arcosh(−⟨x, w_j⟩)⁻ⁿ of the points above x and w_j on the hyperboloid",
        "the Lorentz model: Nickel and Kiela, arXiv 1806.03417",
        lambda x, w, c: harmonic(lorentz_distance(x, w, c), c),
        Form("lorentz", "log_arcosh"),
        lambda x, w, c: (lifted(x, c["curvature"], 1), lifted(w, c["curvature"], -1)),
        constants={"exponent": EXPONENT, "curvature": Constant(1.0, 1e-4, 1e4)},
        float32=True,  # rounded points leave the hyperboloid
    ),
    # Without a product: N V D numbers each way. For studies and small vocabularies
    Head(
        "manhattan",
        "(sum of |x − w_j|)⁻ⁿ",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(distance(x, w, 1.0), c),
        constants={"exponent": EXPONENT},
    ),
    Head(
        "minkowski",
        "(sum of |x − w_j|ᵖ)^(−n/p), p the constant `order`",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(distance(x, w, c["order"]), c),
        constants={"exponent": EXPONENT, "order": Constant(3.0, 0.1, 100.0, learnable=False)},
    ),
    Head(
        "chebyshev",
        "(largest |x − w_j|)⁻ⁿ",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(distance(x, w, math.inf), c),
        constants={"exponent": EXPONENT},
    ),
    Head(
        "canberra",
        "(sum of |x − w_j| / (|x| + |w_j| + 1e-4))⁻ⁿ",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(((x - w).abs() / (x.abs() + w.abs() + CANBERRA_EPS)).sum(-1), c),
        constants={"exponent": EXPONENT},
    ),
    Head(
        "bray_curtis",
        "(sum of |x − w_j| / (|sum of x + w_j| + 1e-3))⁻ⁿ",
        MILLER_GOLUB,
        lambda x, w, c: harmonic((x - w).abs().sum(-1) / ((x + w).sum(-1).abs() + BRAY_CURTIS_EPS), c),
        constants={"exponent": EXPONENT},
    ),
    Head(
        "hamming",
        "(sum of |σ(x / temperature) − σ(w_j / temperature)|)⁻ⁿ: a soft count of differing signs",
        MILLER_GOLUB,
        lambda x, w, c: harmonic(
            (torch.sigmoid(x / c["temperature"]) - torch.sigmoid(w / c["temperature"])).abs().sum(-1), c
        ),
        constants={"exponent": EXPONENT, "temperature": TEMPERATURE},
    ),
)
HEADS: dict[str, Head] = {head.name: head for head in _ALL}
# The paper's ablation by its two choices: how configs of version 0.1 and before name the head
PAIRS = {
    ("euclidean", "harmax"): "harmonic",
    ("euclidean", "softmax"): "euclidean_softmax",
    ("dot", "harmax"): "dot_harmax",
    ("dot", "softmax"): "standard",
}


SIMILARITIES = ("euclidean", "dot")
NORMALIZATIONS = ("harmax", "softmax")


def find_pair(similarity: str, normalization: str, exponent: float) -> tuple[str, dict[str, float]]:
    """(name, constants) of one of the four heads of PAIRS. Raises ValueError; softmax heads ignore the exponent."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {SIMILARITIES}, got {similarity!r}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization: expected one of {NORMALIZATIONS}, got {normalization!r}")
    EXPONENT.check("exponent", float(exponent))
    return PAIRS[similarity, normalization], {"exponent": float(exponent)} if normalization == "harmax" else {}


def find_head(name: str) -> Head:
    """The head of that name. Raises ValueError with the nearest name."""
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, 1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"head: there is no {name!r}{hint} Heads: {', '.join(HEADS)}")
    return HEADS[name]
