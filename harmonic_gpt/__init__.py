"""Train GPT-2 with a harmonic distance head, measure it, read it, publish it (Baek et al., arXiv 2502.01628).

The names below are loaded when they are first used: importing the package costs neither torch nor transformers. For
transformers' Auto classes to know the model type without trust_remote_code, import `harmonic_gpt.model`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "HarmonicGPT2Config",
    "HarmonicGPT2ForCausalLM",
    "HarmonicHead",
    "harmonic_cross_entropy",
    "head_cross_entropy",
    "head_logits",
]

if TYPE_CHECKING:
    from harmonic_gpt.model import (
        HarmonicGPT2Config,
        HarmonicGPT2ForCausalLM,
        HarmonicHead,
        harmonic_cross_entropy,
        head_cross_entropy,
        head_logits,
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("harmonic_gpt.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
