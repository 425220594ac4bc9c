"""The unembedding as a module: logits for inference, the chunked loss for training."""

import torch
from torch import Tensor, nn

from .harmonic_logits import HeadSpec, head_logits
from .harmonic_loss import harmonic_cross_entropy


class HarmonicHead(nn.Module):
    """Unembedding whose rows are class centers. `weight` is (V, D), tied to the token embedding by default.

    `impl` is the attribute that `harmonic_cross_entropy` takes: "auto", "torch" or "triton".

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
        self.impl = "auto"
        if self.spec.name == "standard" and hidden_scale == 1:
            self.register_parameter("bias", None)  # as nn.Linear says that it has none

    def __getattr__(self, name: str):
        if name == "bias" and "bias" not in self._parameters:
            raise AttributeError(
                "this head has no bias, and its output is not the product with lm_head.weight: a program that looks "
                "for one (TRL's trainers do) would train dot products. Use transformers' Trainer, the model's loss, or "
                "for TRL harmonic_gpt.interop.trl.with_own_head"
            )
        return super().__getattr__(name)

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits (..., V), or with labels (...) the loss in nats (see `harmonic_cross_entropy`).

        The standard head returns raw dot products, as GPT-2 does. The others return log-probabilities: their z is
        defined up to a constant a row, and processors that look at the sign of a logit (repetition penalty) need all of
        one sign.
        """
        hidden_states = hidden_states * self.hidden_scale  # (..., D)
        if labels is not None:
            return harmonic_cross_entropy(
                hidden_states, self.weight, labels, reduction=reduction, impl=self.impl, **self.spec._asdict()
            )
        logits = head_logits(hidden_states, self.weight, **self.spec._asdict())
        return logits if self.spec.name == "standard" else logits.log_softmax(-1)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self.spec}, hidden_scale={self.hidden_scale:.4g}"
