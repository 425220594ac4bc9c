"""nnsight: read a hidden state, and change one. GPT-2's module names work as they are.

pip install nnsight
python examples/nnsight_trace.py runs/quickstart-harmonic/latest
"""

import sys

import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
prompt = "The function returns"

with traced.trace(prompt):
    hidden = traced.transformer.h[0].output.save()  # (1, T, D)
    logits = traced.lm_head.output.save()  # (1, T, V) log-probabilities

ids = tokenizer(prompt, return_tensors="pt").input_ids
expected = model(ids, output_hidden_states=True)
hidden = hidden[0] if isinstance(hidden, tuple) else hidden
difference = (hidden - expected.hidden_states[1]).abs().max()
print(f"hidden states after block 0 differ from transformers' by at most {difference:.1e}")

with traced.trace(prompt):
    traced.transformer.h[1].mlp.output = torch.zeros_like(hidden)  # silence one block's MLP
    silenced = traced.lm_head.output.save()

change = (silenced - logits)[0, -1].abs().max()
print(f"largest change of a log-probability without the MLP of block 1: {change:.3f} nats")
