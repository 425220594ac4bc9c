import torch
from torch import nn

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.interop.linear_trunk import linear_trunk


def test_the_function_stays(tiny_config):
    model = HarmonicGPT2ForCausalLM(tiny_config()).eval()
    ids = torch.randint(101, (2, 12))
    with torch.no_grad():
        before = model(ids).logits
        assert linear_trunk(model) is model
        torch.testing.assert_close(model(ids).logits, before)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 4 * 2  # of every block
    assert type(model.lm_head).__name__ == "HarmonicHead"
