"""Attention stays eligible for the flash kernels, and compiling makes one graph for training and one for evaluation."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from harmonic_gpt.likelihood import block_nats, inputs_and_targets
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import loop, setup
from harmonic_gpt.training.attention import CAUSAL_SDPA, compile_blocks, use_causal_attention

ATEN = torch.ops.aten


class Graphs:
    """A backend for torch.compile that runs graphs as they are and keeps them."""

    def __init__(self):
        torch._dynamo.reset()
        counters.clear()
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _example_inputs):
        self.graphs.append(graph)
        return graph.forward

    def attention(self) -> list[tuple]:
        """(mask, is_causal) of every attention call, in graphs and in the graphs that they hold (recomputed blocks)."""
        modules = [m for graph in self.graphs for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
        nodes = [node for module in modules for node in module.graph.nodes if "scaled_dot_product" in str(node.target)]
        return [(node.kwargs.get("attn_mask"), node.kwargs.get("is_causal")) for node in nodes]


class HostReads(TorchDispatchMode):
    """Counts the operators that make a GPU's host wait for a value."""

    OPERATORS = (ATEN._local_scalar_dense.default, ATEN.is_nonzero.default, ATEN.nonzero.default, ATEN.equal.default)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator in self.OPERATORS
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def masks(monkeypatch) -> list[tuple]:
    """(mask, is_causal) of every eager attention call. A compiler does not see the spy: it would guard on the list."""
    real, seen = torch.nn.functional.scaled_dot_product_attention, []

    def spy(*args, attn_mask=None, is_causal=False, **kwargs):
        if not torch.compiler.is_compiling():
            seen.append((attn_mask, is_causal))
        return real(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


def wrapped(model: HarmonicGPT2ForCausalLM, how: str) -> torch.nn.Module:
    """As accelerate wraps it: not at all, for data parallelism, or each block sharded and then the rest."""
    if how == "ddp":
        return DistributedDataParallel(model)
    if how == "fsdp2":
        for block in model.transformer.h:
            fully_shard(block)
        fully_shard(model)
    return model


def train_and_evaluate(model: torch.nn.Module, bare: HarmonicGPT2ForCausalLM) -> list[float]:
    """Two rounds of a training batch of 3 sequences and an evaluation batch of 2 with a third row of padding."""
    ids, losses = torch.randint(101, (3, 25)), []
    for _ in range(2):
        inputs, targets = inputs_and_targets(ids)
        loss = model.train()(input_ids=inputs, shift_labels=targets, num_items_in_batch=72).loss
        loss.backward()
        losses.append(loss.item())
        model.eval()
        losses.append(block_nats(bare, ids[:2], rows=3).item())
    return losses


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("how", ["alone", "ddp", "fsdp2"])
@pytest.mark.usefixtures("one_rank")
def test_attention_is_causal_without_a_mask_and_blocks_share_two_graphs(tiny_config, masks, how, recompute):
    # Blocks of 7 MB: inside DistributedDataParallel torch cuts a graph behind its first MiB of weights, if it may
    losses, width = [], 384 if how == "ddp" else 32
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    for compiled in (False, True):
        torch.manual_seed(0)
        model, backend = HarmonicGPT2ForCausalLM(tiny_config(n_layer=3, n_embd=width, **dropout)), Graphs()
        if recompute:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        use_causal_attention(model)
        if compiled:
            compile_blocks(model, backend)
        masks.clear()
        losses.append(train_and_evaluate(wrapped(model, how), model))
        assert len(backend.graphs) == (2 if compiled else 0)
        assert not counters["graph_break"]
        calls = backend.attention() if compiled else masks
        assert calls == [(None, True)] * (2 if compiled else 3 * (4 + 2 * recompute))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_trunk_reads_nothing_back(tiny_config, training):
    model = HarmonicGPT2ForCausalLM(tiny_config()).train(training)
    counts = []
    for prepare in (lambda _: None, use_causal_attention):
        prepare(model)
        with HostReads() as reads:
            model.transformer(torch.randint(101, (3, 24)), use_cache=False)
        counts.append(reads.count)
    assert counts[0] > 0  # transformers' own path: this test can see a read
    assert counts[1] == 0


def test_a_run_compiles_two_graphs_whatever_its_last_batches_hold(run_config, tmp_path, monkeypatch):
    """8 sequences of a step as 3 + 3 + 2, and 16 blocks of the evaluation as 5 x 3 + 1."""
    backend = Graphs()
    monkeypatch.setattr(setup, "compile_blocks", partial(compile_blocks, backend=backend))
    for name, compiled in (("plain", False), ("compiled", True)):
        config = run_config(run_dir=tmp_path / name, train__micro_batch_size=3, train__compile=compiled)
        assert loop.train(config) == 0
        assert len(backend.graphs) == 2 * compiled
    assert not counters["graph_break"]
    assert set(backend.attention()) == {(None, True)}
    plain, compiled = (read_metrics(tmp_path / name) for name in ("plain", "compiled"))
    for name in ("loss", "grad_norm", "val_loss"):
        seen, expected = ([row[name] for row in rows if name in row] for rows in (compiled, plain))
        assert seen == pytest.approx(expected, rel=1e-5), name


def test_the_name_of_the_implementation_stays_in_the_process(run_config, masks):
    run = loop.setup(run_config(), resume=False)
    assert run.bare_model.config._attn_implementation == CAUSAL_SDPA
    folder = loop.save(run)
    run.tracker.close()
    assert set(masks) <= {(None, True)}
    assert CAUSAL_SDPA not in (folder / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa"
    # With the plain implementation a padding mask counts again
    ids, mask = torch.randint(300, (1, 8)), torch.ones(1, 8)
    mask[0, :4] = 0
    masks.clear()
    model(input_ids=ids, attention_mask=mask)
    assert all(seen is not None for seen, _ in masks)
