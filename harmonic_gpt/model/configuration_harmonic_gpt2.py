"""Configuration of GPT-2 with a harmonic (or standard) unembedding head."""

import math
import sys

from huggingface_hub.dataclasses import strict  # checks the types of the fields below, as for GPT2Config itself
from transformers import GPT2Config

from .harmonic_logits import HeadSpec


def matched_scales(similarity: str, normalization: str, n_embd: int) -> tuple[float, float]:
    """(hidden_scale, center_std) that make hidden states and centers meet at the start of training.

    After a layer norm of gain 1 a hidden state has norm sqrt(D); a center has norm center_std * sqrt(D). A Euclidean
    head first spends its steps making the two meet unless they start equal. For dot products the same center
    std gives logits of unit variance, which helps the standard head as well: both heads get the same care.
    """
    rsqrt = 1 / math.sqrt(n_embd)
    if similarity == "dot":
        return 1.0, rsqrt
    # -log d does not see a common scale; -d does, and needs distances that differ by about 1 between classes
    return (rsqrt, rsqrt) if normalization == "harmax" else (1.0, 1.0)


def _give_peft_the_defaults_of_gpt2(model_type: str) -> None:
    """PEFT has a table of default target modules for each of its methods, keyed by model type: adds ours, with GPT-2's
    modules. Does nothing while PEFT is not loaded."""
    constants = sys.modules.get("peft.utils.constants")
    for name, table in vars(constants).items() if constants else ():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "gpt2" in table:
            table.setdefault(model_type, table["gpt2"])


@strict
class HarmonicGPT2Config(GPT2Config):
    """GPT2Config plus the head.

    Fields:
        similarity: "euclidean" (squared distance to each center) or "dot" (inner product).
        normalization: "harmax" (p proportional to distance^-n) or "softmax".
            euclidean + harmax is the harmonic head of Baek et al. (arXiv 2502.01628); dot + softmax is GPT-2's own.
        exponent: harmonic exponent n, on the distance (the paper's convention), or "sqrt" for sqrt(n_embd). Softmax
        ignores it.
        hidden_scale: constant factor on the hidden states before the head; part of the model. None: matched (see
        matched_scales).
        center_std: standard deviation of the centers (and of the tied token embedding) at initialisation. None:
            matched.

    `hidden_scale=None` and `center_std=None` are replaced by their numbers at construction, so that a saved config is
    explicit. Differences from GPT2Config's defaults: no dropout; activation "gelu_pytorch_tanh", the same function as
    "gelu_new" in one kernel (on the CPU the trunk takes a quarter less time). Raises ValueError for values that no head
    has.
    """

    model_type = "harmonic_gpt2"

    activation_function: str = "gelu_pytorch_tanh"
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0

    similarity: str = "euclidean"
    normalization: str = "harmax"
    exponent: float | int | str = "sqrt"
    hidden_scale: float | int | None = None
    center_std: float | int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if isinstance(self.exponent, str) and self.exponent != "sqrt":
            raise ValueError(f'exponent: expected a positive number or "sqrt", got {self.exponent!r}')
        _ = self.head_spec  # raises for a head that does not exist
        hidden_scale, center_std = matched_scales(self.similarity, self.normalization, self.n_embd)
        self.hidden_scale = hidden_scale if self.hidden_scale is None else float(self.hidden_scale)
        self.center_std = center_std if self.center_std is None else float(self.center_std)
        for name in ("hidden_scale", "center_std"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value}")

    def to_dict(self) -> dict:
        # PEFT calls this right before it looks the model type up in its tables, whichever of us was imported first
        _give_peft_the_defaults_of_gpt2(self.model_type)
        return super().to_dict()

    @property
    def head_exponent(self) -> float:
        """The harmonic exponent n as a number."""
        return math.sqrt(self.n_embd) if self.exponent == "sqrt" else float(self.exponent)

    @property
    def head_spec(self) -> HeadSpec:
        """The head as the loss and the logits take it. Raises ValueError for one that does not exist."""
        return HeadSpec(self.head_exponent, self.similarity, self.normalization).check()
