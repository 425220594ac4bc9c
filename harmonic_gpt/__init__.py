"""Train GPT-2 with a harmonic distance head, measure it, read it, publish it (Baek et al., arXiv 2502.01628)."""

from transformers import AutoConfig, AutoModelForCausalLM

from .model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from .model.harmonic_head import HarmonicHead, harmonic_cross_entropy, head_logits
from .model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM

__version__ = "0.1.0"
__all__ = ["HarmonicGPT2Config", "HarmonicGPT2ForCausalLM", "HarmonicHead", "harmonic_cross_entropy", "head_logits"]

# With the package installed no trust_remote_code is needed
AutoConfig.register(HarmonicGPT2Config.model_type, HarmonicGPT2Config)
AutoModelForCausalLM.register(HarmonicGPT2Config, HarmonicGPT2ForCausalLM)
