"""The unembedding as a module: logits for inference, the chunked loss for training."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .harmonic_logits import head_logits, squared_norms, takes_center_norms
from .harmonic_loss import head_cross_entropy
from .heads import HIDDEN_SCALE, Constant, Head, HeadSpec, find_head, find_pair


class HarmonicHead(nn.Module):
    """Unembedding by any head of `heads.HEADS`. `weight` is (V, D), tied to the token embedding by default.

    Attributes: `impl`, of `head_cross_entropy`; `label_smoothing` and `z_loss`, of the loss while the module is in
    training mode; `constants`, numbers of the head that are not learned, and where the learned ones start.

    Not an nn.Linear: transformers would replace one by a plain nn.Linear when the vocabulary is resized.

    Args:
        head: its name; None: the one that similarity and normalization name (`heads.PAIRS`).
        constants: numbers of the head, its exponent too if that is not given by name. The others take their defaults.
        learn: of the head's constants and "hidden_scale" those that are learned, and "prior". A number is learned as
            its logarithm, a parameter log_NAME of shape (1,), and starts at the value given.
        prior: the head adds a log prior (V,) to the logits, 0 at first; a buffer, or a parameter if learned.
        allow_slow: of `head_cross_entropy`.
    Raises ValueError: an unknown head, constant or name in `learn`, or a number out of its range.
    """

    def __init__(
        self,
        n_embd: int,
        vocab_size: int,
        *,
        exponent: float | None = None,
        similarity: str = "euclidean",
        normalization: str = "harmax",
        hidden_scale: float = 1.0,
        head: str | None = None,
        constants: Mapping[str, float] | None = None,
        learn: Iterable[str] = (),
        prior: bool = False,
        allow_slow: bool = False,
    ):
        super().__init__()
        given = dict(constants or {})
        if head is None:
            head, pair = find_pair(similarity, normalization, math.sqrt(n_embd) if exponent is None else exponent)
            given |= pair
        elif exponent is not None:
            given["exponent"] = exponent
        self.name = find_head(head).name
        self.constants = self.definition.numbers(n_embd, given)
        self.learn = self.definition.check_learned(learn, prior)
        self.allow_slow = allow_slow
        self.impl = "auto"
        self._generations = 0  # that are going on
        self._norms: tuple[Any, Tensor] | None = None  # of the centers, for them
        self.label_smoothing = self.z_loss = 0.0

        self.weight = nn.Parameter(torch.empty(vocab_size, n_embd))
        self._fixed_scale = HIDDEN_SCALE.check("hidden_scale", hidden_scale)
        self.has_prior = prior
        if not prior:
            self.log_prior = None
        for name, start in self.starts():
            if name == "log_prior" and "prior" not in self.learn:
                self.register_buffer(name, start)
            else:
                self.register_parameter(name, nn.Parameter(start))
        fixed = not (self.learn or prior)
        if self.name == "standard" and fixed and self._fixed_scale == self.constants["temperature"] == 1:
            self.register_parameter("bias", None)  # as nn.Linear says that it has none

    def __getattr__(self, name: str):
        if name == "bias" and "bias" not in self._parameters:
            raise AttributeError(
                "this head has no bias, and its output is not the product with lm_head.weight: a program that looks "
                "for one (TRL's trainers do) would train dot products. Use transformers' Trainer, the model's loss, or "
                "for TRL harmonic_gpt.interop.trl.with_own_head"
            )
        return super().__getattr__(name)

    @property
    def definition(self) -> Head:
        """What the head is. By name: a module that is pickled or copied takes no functions along."""
        return find_head(self.name)

    def learned_numbers(self) -> dict[str, tuple[Constant, float]]:
        """Numbers that are learned, with what they must stay within and where they start. Parameters log_NAME."""
        every = {name: (constant, self.constants[name]) for name, constant in self.definition.constants.items()}
        every["hidden_scale"] = (HIDDEN_SCALE, self._fixed_scale)
        return {name: every[name] for name in every if name in self.learn}

    def starts(self) -> Iterator[tuple[str, Tensor]]:
        """(name, the value that it starts at) of all parameters and buffers but `weight`."""
        for name, (_, start) in self.learned_numbers().items():
            yield f"log_{name}", torch.tensor([math.log(start)])
        for name, weight in self.definition.weights.items():
            yield name, weight.start(self.weight.shape[1], self.constants)
        if self.has_prior:
            yield "log_prior", torch.zeros(len(self.weight))

    def _scale(self) -> float | Tensor:
        return self.log_hidden_scale.exp() if "hidden_scale" in self.learn else self._fixed_scale

    @property
    def hidden_scale(self) -> float:
        """The factor on the hidden states, as it is now."""
        scale = self._scale()
        return scale.item() if isinstance(scale, Tensor) else scale

    @property
    def spec(self) -> HeadSpec:
        """The head and its numbers as they are now."""
        learned = {name: getattr(self, f"log_{name}").exp().item() for name in self.learned_numbers()}
        numbers = {name: learned.get(name, value) for name, value in self.constants.items()}
        return HeadSpec(self.name, numbers)

    def values(self) -> dict[str, float | Tensor]:
        """Constants and weights as `head_logits` and `head_cross_entropy` take them; those that are learned as tensors
        with gradients."""
        values: dict[str, float | Tensor] = {**self.constants}
        values |= {name: getattr(self, f"log_{name}").exp() for name in self.learned_numbers() if name in values}
        return values | {name: getattr(self, name) for name in self.definition.weights}

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Within it the norms of the centers are kept from token to token, while the weight is the same tensor at the
        same version. Nothing is kept beyond: `weight.data` can be changed without a trace."""
        self._generations += 1
        try:
            yield
        finally:
            self._generations -= 1
            if not self._generations:
                self._norms = None

    def _center_norms(self) -> Tensor | None:
        """||w||^2 (V,) while a generation goes on; None: not kept."""
        if not self._generations or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return None
        weight = self.weight
        if weight.is_inference() or not takes_center_norms(self.definition, weight):
            return None
        now = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._norms is None or self._norms[0] != now:
            self._norms = (now, squared_norms(weight))
        return self._norms[1]

    def forward(
        self,
        hidden_states: Tensor,
        labels: Tensor | None = None,
        reduction: str = "mean",
        token_weights: Tensor | None = None,
    ) -> Tensor:
        """Logits (..., V), or with labels (...) the loss in nats (see `head_cross_entropy`).

        The standard head returns raw dot products, as GPT-2 does. The others return log-probabilities: their z is
        defined up to a constant a row, and processors that look at the sign of a logit (repetition penalty) need all of
        one sign.
        """
        hidden_states = hidden_states * self._scale()  # (..., D)
        head: dict[str, Any] = {"head": self.name, "log_prior": self.log_prior, **self.values()}
        if labels is not None:
            options = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss} if self.training else {}
            return head_cross_entropy(
                hidden_states, self.weight, labels, reduction=reduction, token_weights=token_weights, impl=self.impl,
                allow_slow=self.allow_slow, **options, **head,
            )  # fmt: skip
        logits = head_logits(hidden_states, self.weight, center_norms=self._center_norms(), **head)
        return logits if self.name == "standard" else logits.log_softmax(-1)

    def extra_repr(self) -> str:
        learned = f", learned: {', '.join(self.learn)}" if self.learn else ""
        spec = ", ".join(f"{name}={value:.6g}" for name, value in self.constants.items())
        text = f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self.name}, {spec}"
        return f"{text}, hidden_scale={self._fixed_scale:.4g}{learned}"
