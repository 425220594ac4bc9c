"""Generation on the GPU: greedy, it writes what the CPU writes."""

import pytest
import torch

from harmonic_gpt import HarmonicGPT2ForCausalLM
from tests.conftest import HEADS


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_greedy_is_the_cpus(device, tiny_config, head, use_cache):
    """float32, a batch whose second prompt is padded on the left."""
    config = tiny_config(similarity=head[0], normalization=head[1], initializer_range=0.3)
    model = HarmonicGPT2ForCausalLM(config).eval()
    prompt = torch.randint(1, 101, (2, 6))
    mask = torch.ones_like(prompt)
    prompt[1, :2], mask[1, :2] = 0, 0
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
    expected = model.generate(prompt, attention_mask=mask, pad_token_id=0, **settings)
    model.to(device)
    got = model.generate(prompt.to(device), attention_mask=mask.to(device), pad_token_id=0, **settings)
    assert got.device.type == device
    assert got.tolist() == expected.tolist()
    assert len({tuple(row) for row in expected[:, 6:].tolist()}) == 2  # it depends on the prompt
