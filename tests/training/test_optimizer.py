import itertools

import pytest
import torch

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import OptimSection
from harmonic_gpt.training.optimizer import build_optimizer, learning_rate, parameter_groups


def test_schedule_is_warmup_then_cosine():
    config = OptimSection(lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)  # half way down
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_no_warmup_and_one_step():
    config = OptimSection(lr=1.0, warmup_steps=0)
    assert learning_rate(0, 1, config) == 1.0
    assert learning_rate(0, 5, config) == 1.0


@pytest.mark.parametrize("tied", [True, False])
def test_decay_groups(tiny_config, tied):
    model = HarmonicGPT2ForCausalLM(tiny_config(tie_word_embeddings=tied))
    decayed, plain = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(names[id(p)].endswith("bias") or ".ln_" in names[id(p)] for p in plain["params"])
    together = [id(p) for p in decayed["params"] + plain["params"]]
    assert len(together) == len(set(together)) == len(list(model.parameters()))


def test_decay_shrinks_matrices_only(tiny_config):
    model = HarmonicGPT2ForCausalLM(tiny_config())
    optimizer = build_optimizer(model, OptimSection(lr=0.5, weight_decay=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim >= 2 else 1.0))
