import itertools

import pytest
import torch

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import OptimSection
from harmonic_gpt.training.optimizer import MuonAndAdamW, build_optimizer, learning_rate, parameter_groups


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


def stepped(model, optimizers, first: int = 0, last: int = 4) -> None:
    """Updates with the same made-up gradients and another rate at each step."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1) * group.get("lr_scale", 1.0)
            optimizer.step()


def fresh(tiny_config, tied=False):
    torch.manual_seed(0)
    return HarmonicGPT2ForCausalLM(tiny_config(tie_word_embeddings=tied))


def assert_equal_weights(a, b):
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("tied", [True, False])
def test_muon_is_torchs_for_the_blocks_matrices_and_adamw_for_the_rest(tiny_config, tied):
    config = OptimSection(lr=0.01, weight_decay=0.1, optimizer="muon", head_lr_scale=2.0, eps=1e-5)
    ours, theirs = fresh(tiny_config, tied), fresh(tiny_config, tied)
    stepped(ours, [build_optimizer(ours, config)])

    named = dict(theirs.named_parameters())
    matrices = [p for name, p in named.items() if ".h." in name and p.ndim == 2]
    head = theirs.lm_head.weight
    assert len(matrices) == 4 * theirs.config.n_layer
    others = [p for p in named.values() if p is not head and not any(p is m for m in matrices)]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
            {"params": [head], "weight_decay": 0.1, "lr_scale": 2.0},
        ],
        betas=config.betas, eps=config.eps, fused=True,
    )  # fmt: skip
    stepped(theirs, [torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), adamw])
    assert_equal_weights(ours, theirs)


def test_muon_goes_on_from_a_loaded_state(tiny_config):
    config = OptimSection(optimizer="muon", head_lr_scale=2.0)
    whole, parts = fresh(tiny_config), fresh(tiny_config)
    stepped(whole, [build_optimizer(whole, config)])
    first = build_optimizer(parts, config)
    stepped(parts, [first], last=2)
    second = build_optimizer(parts, config)
    second.load_state_dict(first.state_dict())
    stepped(parts, [second], first=2)
    assert_equal_weights(whole, parts)
    assert isinstance(second, MuonAndAdamW)
    assert sum(len(g["params"]) for g in second.param_groups) == len(second.state) == len(list(parts.parameters()))


def test_a_rate_of_the_head_moves_the_centers_only(tiny_config):
    plain, fast = fresh(tiny_config), fresh(tiny_config)
    start = plain.lm_head.weight.detach().clone()
    stepped(plain, [build_optimizer(plain, OptimSection())], last=1)
    stepped(fast, [build_optimizer(fast, OptimSection(head_lr_scale=3.0))], last=1)
    torch.testing.assert_close(fast.lm_head.weight - start, 3 * (plain.lm_head.weight - start), rtol=1e-4, atol=1e-7)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert torch.equal(a, b) != (name == "lm_head.weight"), name
