"""EleutherAI's sparsify: train a sparse autoencoder on the hidden states of a block (here for a few steps, on a CPU).

pip install eai-sparsify datasets
python examples/sparsify_sae.py runs/quickstart-harmonic/latest sae/
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read when sparsify is imported; its kernels are for CUDA

from datasets import Dataset
from sparsify import SaeConfig, TrainConfig, Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:3]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
text = " ".join(f"The value {i} of the list is returned as a string." for i in range(400))
ids = tokenizer(text).input_ids
rows = [ids[i : i + 32] for i in range(0, len(ids) - 32, 32)]
data = Dataset.from_dict({"input_ids": rows}).with_format("torch")

autoencoder = SaeConfig(expansion_factor=4, k=8)
config = TrainConfig(
    autoencoder, hookpoints=["h.1"], batch_size=8, save_every=10_000, log_to_wandb=False, save_dir=out, run_name="sae"
)
trainer = Trainer(config, data, model)
encoder = trainer.saes["h.1"].encoder
before = encoder.weight.detach().clone()
trainer.fit()
change = (encoder.weight - before).norm() / before.norm()
steps = len(rows) // config.batch_size
print(f"autoencoder of {len(before)} latents on transformer.h.1, {steps} steps; its encoder moved by {change:.2%}")
