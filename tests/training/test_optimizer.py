import itertools
import math
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils._python_dispatch import TorchDispatchMode

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import OptimSection
from harmonic_gpt.training import optimizer as optimizer_module
from harmonic_gpt.training.optimizer import (
    BatchedMuon,
    MuonAndAdamW,
    build_optimizer,
    freeze,
    learning_rate,
    orthogonalize,
    parameter_groups,
    step_unless,
)


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


def test_muon_refuses_groups_that_its_parts_would_not_see(tiny_config):
    optimizer = build_optimizer(fresh(tiny_config), OptimSection(optimizer="muon"))
    with pytest.raises(NotImplementedError, match="takes all groups when it is made"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})


def test_a_rate_of_the_head_moves_the_centers_only(tiny_config):
    plain, fast = fresh(tiny_config), fresh(tiny_config)
    start = plain.lm_head.weight.detach().clone()
    stepped(plain, [build_optimizer(plain, OptimSection())], last=1)
    stepped(fast, [build_optimizer(fast, OptimSection(head_lr_scale=3.0))], last=1)
    torch.testing.assert_close(fast.lm_head.weight - start, 3 * (plain.lm_head.weight - start), rtol=1e-4, atol=1e-7)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert torch.equal(a, b) != (name == "lm_head.weight"), name


def wrapped(optimizer: torch.optim.Optimizer) -> AcceleratedOptimizer:
    Accelerator(cpu=True)  # accelerate's wrapper asks for its state
    return AcceleratedOptimizer(optimizer, device_placement=False)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_skipped_step_leaves_every_bit_and_the_next_one_goes_on(tiny_config, name, value):
    """Also the first step, before there is a state; and the step that is not skipped is a plain step."""
    config = OptimSection(optimizer=name, weight_decay=0.1)
    plain, skipping = fresh(tiny_config), fresh(tiny_config)
    stepped(plain, [build_optimizer(plain, config)], last=3)
    optimizer = build_optimizer(skipping, config)
    for step in range(3):
        for broken in (True, False):
            stepped(skipping, [], first=step, last=step + 1)  # made-up gradients
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
            if broken:
                for p in skipping.parameters():
                    p.grad.view(-1)[0] = value
            before = deepcopy([skipping.state_dict(), optimizer.state_dict()["state"]])
            step_unless(torch.tensor(broken), wrapped(optimizer))
            if broken and step:
                after = [skipping.state_dict(), optimizer.state_dict()["state"]]
                torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert not hasattr(optimizer, "found_inf")
    assert_equal_weights(plain, skipping)


def test_batched_muon_is_torchs_bit_by_bit_for_odd_shapes():
    shapes = [(13, 7), (7, 13), (13, 7), (9, 9), (1, 5), (64, 48), (13, 7)]
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizers = BatchedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape) * 0.01
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(optimizers[0].state[a]["momentum_buffer"], optimizers[1].state[b]["momentum_buffer"])


def test_orthogonalize_moves_singular_values_near_1():
    coefficients = BatchedMuon([torch.nn.Parameter(torch.ones(1, 1))]).defaults["ns_coefficients"]
    for shape in ((13, 7), (7, 13), (64, 48)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(5, *shape), coefficients, 5, 1e-7).float())
        assert ((singular > 0.3) & (singular < 1.6)).all()


def test_muon_needs_four_calls_for_any_number_of_blocks(tiny_config):
    model = HarmonicGPT2ForCausalLM(tiny_config(n_layer=12))
    optimizer = build_optimizer(model, OptimSection(optimizer="muon"))
    products = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default):
                products.append(args[0].shape)
            assert operator not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return operator(*args, **(kwargs or {}))

    stepped(model, [], last=1)
    with Products():
        optimizer.step()
    assert len(products) == 4 * 5 * 3  # shapes, iterations, products of an iteration
    assert {shape[0] for shape in products} == {12}


def test_a_checkpoint_of_torchs_muon_goes_on(tiny_config, monkeypatch):
    """What earlier versions wrote: they had torch.optim.Muon itself."""
    config = OptimSection(optimizer="muon", head_lr_scale=2.0, weight_decay=0.1)
    whole, parts = fresh(tiny_config), fresh(tiny_config)
    stepped(whole, [build_optimizer(whole, config)])
    with monkeypatch.context() as patch:
        patch.setattr(optimizer_module, "BatchedMuon", torch.optim.Muon)
        first = build_optimizer(parts, config)
    assert type(first.parts[0]) is torch.optim.Muon
    stepped(parts, [first], last=2)
    second = build_optimizer(parts, config)
    second.load_state_dict(first.state_dict())
    stepped(parts, [second], first=2)
    assert_equal_weights(whole, parts)
    assert second.state_dict()["param_groups"][0].keys() == first.state_dict()["param_groups"][0].keys()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_frozen_does_not_move(tiny_config, optimizer, tied):
    model = HarmonicGPT2ForCausalLM(tiny_config(tie_word_embeddings=tied))
    names = ["transformer.ln_f", "transformer.h.0.mlp.c_fc.weight", "lm_head"]
    freeze(model, names)
    before = deepcopy(model.state_dict())
    stepper = build_optimizer(model, OptimSection(optimizer=optimizer, weight_decay=0.5, head_lr_scale=2.0))
    ids = torch.randint(0, 90, (2, 8))
    model(ids, labels=ids).loss.backward()
    stepper.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if any(f"{name}.".startswith(f"{own}.") for own in names)}
    assert moved == before.keys() - frozen - ({"transformer.wte.weight"} if tied else set())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ln_f"], r"no 'ln_f'; it has lm_head, transformer.ln_f, .* transformer.h.0 to transformer.h.1"),
        (["transformer.h.0.ln"], "no 'transformer.h.0.ln'"),
        (["transformer", "lm_head"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen_is_named(tiny_config, names, message):
    with pytest.raises(InputError, match=message):
        freeze(HarmonicGPT2ForCausalLM(tiny_config(tie_word_embeddings=False)), names)
