"""The model and its head: the files beside this one travel to the Hub with every checkpoint and import nothing else of
the package. Importing this folder registers the model with transformers' Auto classes.

Not here: anything that trains, measures or publishes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_harmonic_gpt2 import HarmonicGPT2Config
from .harmonic_head import HarmonicHead
from .harmonic_logits import head_logits
from .harmonic_loss import harmonic_cross_entropy, head_cross_entropy
from .modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM, HarmonicGPT2Model

__all__ = [
    "HarmonicGPT2Config",
    "HarmonicGPT2ForCausalLM",
    "HarmonicHead",
    "harmonic_cross_entropy",
    "head_cross_entropy",
    "head_logits",
]

AutoConfig.register(HarmonicGPT2Config.model_type, HarmonicGPT2Config)
AutoModel.register(HarmonicGPT2Config, HarmonicGPT2Model)
AutoModelForCausalLM.register(HarmonicGPT2Config, HarmonicGPT2ForCausalLM)
