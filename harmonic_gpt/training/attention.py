"""The trunk as training runs it: attention that stays flash, blocks compiled one by one."""

from collections.abc import Callable

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM

CAUSAL_SDPA = "causal_sdpa"


def use_causal_attention(model: HarmonicGPT2ForCausalLM) -> None:
    """Every attention call of the model becomes scaled_dot_product_attention with is_causal and without a mask.

    transformers makes no mask for an implementation that it does not know. Under its own "sdpa" it looks for packed
    sequences in every forward pass: in eager mode that reads a value back from the device, and under torch.compile it
    always ends in a mask, which rules flash attention out. For training and its evaluation only: a padding mask would
    be ignored without a word. The name is a setting of the model in memory; config.json does not hold it.
    """
    AttentionInterface.register(CAUSAL_SDPA, sdpa_attention_forward)
    model.set_attn_implementation(CAUSAL_SDPA)


def compile_blocks(model: HarmonicGPT2ForCausalLM, backend: str | Callable = "inductor") -> None:
    """Compile each block in place, before the model is wrapped for several ranks or sharded.

    All blocks share one graph for training and one for evaluation, so that compiling takes the time of one block, and
    sharding's hooks stay outside of it. dynamic=False: each shape of a batch has its own graph. Callers keep to one
    (`likelihood.inputs_and_targets`).
    """
    # Inside DistributedDataParallel torch would cut every block behind its first MiB of weights, so that gradients are
    # sent while others are still computed. Between blocks they are sent without that. The setting is the process's
    torch._dynamo.config.optimize_ddp = False
    for block in model.transformer.h:
        block.compile(backend=backend, dynamic=False)
