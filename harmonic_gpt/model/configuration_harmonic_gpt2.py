"""Configuration of GPT-2 with a harmonic (or another) unembedding head."""

import math
import sys

from huggingface_hub.dataclasses import strict  # checks the types of the fields below, as for GPT2Config itself
from transformers import GPT2Config

from .heads import HIDDEN_SCALE, PAIRS, Head, HeadSpec, find_head, find_pair


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
        head: name of one of `heads.HEADS` (docs/how-to/heads.md); harmonic by default.
        similarity ("euclidean" or "dot"), normalization ("harmax" or "softmax"): name the four heads of the ablation of
            arXiv 2502.01628 in older configs, and are kept for these four; None for all other heads.
        exponent: harmonic exponent n, on the distance (the paper's convention), or "sqrt" for sqrt(n_embd). Heads
            without one ignore it.
        head_constants: the head's other numbers, by name.
        learn: which numbers are learned, of the head's and "hidden_scale", and "prior"; the fields say where they
            start, the weights what has become of them.
        prior: the head adds a log prior to the logits, `lm_head.log_prior` of the weights.
        hidden_scale: constant factor on the hidden states before the head; part of the model. None: the head's own
            (`heads.Head.scales`), so that hidden states and centers meet at the start of training.
        center_std: standard deviation of the centers (and of the tied token embedding) at initialisation. None: the
            head's own.
        allow_slow: permit a head without a matrix product with a large vocabulary.

    `hidden_scale=None`, `center_std=None` and constants left out are replaced by their numbers at construction, so that
    a saved config is explicit. Differences from GPT2Config's defaults: no dropout; activation "gelu_pytorch_tanh", the
    same function as "gelu_new" in one kernel (on the CPU the trunk takes a quarter less time). Raises ValueError for
    values that no head has.
    """

    model_type = "harmonic_gpt2"

    activation_function: str = "gelu_pytorch_tanh"
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0

    head: str | None = None
    similarity: str | None = None
    normalization: str | None = None
    exponent: float | int | str = "sqrt"
    head_constants: dict | None = None
    learn: list | tuple | None = None
    prior: bool = False
    hidden_scale: float | int | None = None
    center_std: float | int | None = None
    allow_slow: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if isinstance(self.exponent, str) and self.exponent != "sqrt":
            raise ValueError(f'exponent: expected a positive number or "sqrt", got {self.exponent!r}')
        self._name_the_head()
        head = self.definition
        if "exponent" in (self.head_constants or {}):
            raise ValueError("head_constants: the exponent has a field of its own")
        numbers = head.numbers(self.n_embd, {**(self.head_constants or {}), **self._exponent_of(head)})
        self.head_constants = {name: value for name, value in numbers.items() if name != "exponent"}
        self.learn = head.check_learned(self.learn or (), self.prior)
        hidden_scale, center_std = head.scales(self.n_embd)
        self.hidden_scale = hidden_scale if self.hidden_scale is None else float(self.hidden_scale)
        self.center_std = center_std if self.center_std is None else float(self.center_std)
        HIDDEN_SCALE.check("hidden_scale", self.hidden_scale)
        if not (math.isfinite(self.center_std) and self.center_std > 0):
            raise ValueError(f"center_std: expected a positive number, got {self.center_std}")

    def _name_the_head(self) -> None:
        """The name from the two choices of older configs, or the choices from the name. Raises ValueError."""
        if self.head is None:
            pair = (self.similarity or "euclidean", self.normalization or "harmax")
            self.head, _ = find_pair(*pair, 1.0)
        own = next((pair for pair, name in PAIRS.items() if name == self.head), (None, None))
        given = (self.similarity, self.normalization)
        if any(choice not in (None, of_head) for choice, of_head in zip(given, own, strict=True)):
            raise ValueError(f"head {self.head!r} and similarity, normalization {given} are different heads")
        self.similarity, self.normalization = own

    def _exponent_of(self, head: Head) -> dict[str, float]:
        return {"exponent": self.head_exponent} if "exponent" in head.constants else {}

    @property
    def definition(self) -> Head:
        """What the head is. Raises ValueError for one that does not exist."""
        assert self.head is not None  # named at construction
        return find_head(self.head)

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
        """The head and the numbers that it starts with. Raises ValueError for one that does not exist."""
        head = self.definition
        numbers = {**(self.head_constants or {}), **self._exponent_of(head)}
        return HeadSpec(head.name, head.numbers(self.n_embd, numbers))
