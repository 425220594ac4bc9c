"""TransformerLens: hooks and cache on a model of ours, and what must stay off.

pip install transformer-lens
python examples/transformerlens_hooks.py runs/quickstart-harmonic/latest
"""

import sys

from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer("The function returns", return_tensors="pt").input_ids
expected = model(ids, output_hidden_states=True)

# TransformerLens reads the folder's config itself, and would ask whether its code may run
AutoConfig.register(model.config.model_type, type(model.config), exist_ok=True)
# TransformerLens chooses its adapter by this name. The trunk is GPT-2's own; the head is called, never taken apart.
model.config.architectures = ["GPT2LMHeadModel"]
bridge = TransformerBridge.boot_transformers(
    folder, hf_model=model, tokenizer=tokenizer, device="cpu", trust_remote_code=True
)
logits, cache = bridge.run_with_cache(ids)
print(f"log-probabilities differ from transformers' by at most {(logits - expected.logits).abs().max():.1e}")
difference = (cache["blocks.0.hook_resid_post"] - expected.hidden_states[1]).abs().max()
print(f"hidden states after block 0 by {difference:.1e}")


def silence(value, hook):  # noqa: ARG001  TransformerLens passes it by name
    return value * 0


silenced = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.1.mlp.hook_out", silence)])
change = (silenced - logits)[0, -1].abs().max()
print(f"largest change of a log-probability without the MLP of block 1: {change:.3f} nats")

# Folding the final layer norm into the unembedding, and centering the unembedding, keep dot products and not distances
bridge.enable_compatibility_mode()
error = (bridge(ids) - logits).abs().max()
print(f"after enable_compatibility_mode() log-probabilities are off by up to {error:.3f} nats: leave it off")
