"""A published folder in an environment with torch and transformers and nothing of ours."""

import json
import sys
from pathlib import Path

import pytest

from tests.interop import environments

# Runs twice: in the bare environment, and here with the package. What it prints must be the same.
SCRIPT = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, RepetitionPenaltyLogitsProcessor, pipeline
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

disable_progress_bar(); set_verbosity_error()
folder, with_package = sys.argv[1], sys.argv[2] == "package"
if with_package:
    sys.path.insert(0, sys.argv[3])
    import harmonic_gpt.model
    trust = {}
else:
    assert not importlib.util.find_spec("harmonic_gpt") and not importlib.util.find_spec("accelerate")
    trust = {"trust_remote_code": True}
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)  # it reads the config first, which has code
seen = {"class": type(model).__name__, "module": type(model).__module__.split(".")[0]}

prompts = ["The cat sees", "Story 7. The dog finds the river. The bird likes"]
ids = tokenizer(prompts[1], return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits
    seen["logits"] = logits.double().sum().item(), logits[0, -1, :50].tolist()
    kept = model(ids, logits_to_keep=2).logits
assert kept.shape[1] == 2 and torch.allclose(kept, logits[:, -2:], atol=1e-5)

greedy = {"do_sample": False, "max_new_tokens": 12}
seen["beams"] = model.generate(ids, num_beams=3, max_new_tokens=8)[0].tolist()
batch = tokenizer(prompts, return_tensors="pt", padding=True)
assert batch.attention_mask[0, 0] == 0, "padding is on the left"
together = model.generate(**batch, **greedy)[:, batch.input_ids.shape[1] :]
for row, prompt in zip(together, prompts):
    one = tokenizer(prompt, return_tensors="pt")
    alone = model.generate(**one, **greedy)[0, one.input_ids.shape[1] :]
    assert row.tolist() == alone.tolist(), (prompt, row, alone)

text = pipeline("text-generation", model=model, tokenizer=tokenizer)  # which sets the tokenizer's padding_side
seen["pipeline"] = text("The cat", **greedy)[0]["generated_text"]
assert seen["pipeline"].startswith("The cat") and len(seen["pipeline"]) > 10

every = torch.arange(model.config.vocab_size)[None]
lowered = RepetitionPenaltyLogitsProcessor(1.3)(every, logits[:, -1].clone())
assert (lowered < logits[:, -1]).all(), "a repetition penalty lowers every token it acts on"
seen["penalty"] = model.generate(ids, repetition_penalty=1.5, **greedy)[0].tolist()

small = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **trust)
assert small.lm_head.weight.dtype == torch.bfloat16
with torch.no_grad():
    rounded = small(ids).logits
assert rounded.dtype == torch.float32 and rounded.isfinite().all()
p = logits.softmax(-1)
seen["bf16_kl"] = (p * (logits.log_softmax(-1) - rounded.log_softmax(-1))).sum(-1).mean().item()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    return environments.only(tmp_path_factory.mktemp("bare") / "venv", "torch", "transformers")


@pytest.mark.slow
def test_published_model_needs_only_torch_and_transformers(exported, bare_python, tmp_path):
    bare = environments.run(bare_python, SCRIPT, tmp_path / "bare", str(exported), "bare")
    package = [str(exported), "package", str(Path(__file__).parents[2])]
    ours = environments.run(Path(sys.executable), SCRIPT, tmp_path / "here", *package)
    elsewhere, here = (json.loads(shown.splitlines()[-1]) for shown in (bare, ours))
    assert (elsewhere.pop("module"), here.pop("module")) == ("transformers_modules", "harmonic_gpt")
    assert elsewhere == here  # the very same numbers
    assert elsewhere["bf16_kl"] < 1e-3
