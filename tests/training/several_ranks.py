"""What the ranks of test_several_processes.py run: `torchrun several_ranks.py CHECK FOLDER`, with FOLDER/*.yaml the
runs' configs.

Each rank writes what it saw to FOLDER/CHECK-RANK.json; the test looks at it. An assertion that fails here fails the
launch.
"""

import json
import os
import signal
import sys
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.errors import InputError
from harmonic_gpt.model.heads import PAIRS
from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training import distributed, init_from, loop, saving, setup
from harmonic_gpt.training.attention import compile_blocks

RANK = int(os.environ["RANK"])


def config(folder: Path, name: str, *overrides: str):
    return load_run_config(folder / f"{name}.yaml", overrides)


def start(settings, resume=False):
    """As `loop.train` does, but the processes stay connected for the next run."""
    torch.manual_seed(99 + RANK)  # what the process did before must not matter
    return loop.setup(settings, resume)


def train(settings, resume=False) -> int:
    return loop.fit(start(settings, resume))


def whole_state(run) -> list:
    """Weights and optimizer state of this rank as they are now."""
    state = saving.full_copy([run.bare_model.state_dict(), run.optimizer.state_dict()])
    return [state[0], state[1]]


def assert_equal_state(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def poison(run, on_step: int) -> None:
    """A NaN in the loss of rank 1's first micro-batch of a step, as a broken memory chip would make one."""
    forward = run.bare_model.transformer.forward

    def broken(*args, **kwargs):
        output = forward(*args, **kwargs)
        if run.step == on_step and run.model.training and RANK == 1:
            output.last_hidden_state = output.last_hidden_state * float("nan")
        return output

    run.bare_model.transformer.forward = broken


def plain(folder: Path) -> dict:
    """DistributedDataParallel, as torchrun on a CPU gives it."""
    seen = {"skips": []}
    assert train(config(folder, "two")) == 0
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.options._timeout == distributed.COLLECTIVE_TIMEOUT < timedelta(hours=1)

    # Dropout: in one go; and 3 steps, other work, 3 steps
    assert train(config(folder, "dropout")) == 0
    run = start(config(folder, "dropout-parts"))
    places = []  # of the gradients when a micro-batch begins

    def note_gradients(model, _):
        places.append({None if p.grad is None else p.grad.untyped_storage().data_ptr() for p in model.parameters()})

    run.model.register_forward_pre_hook(note_gradients)
    for _ in range(3):
        loop.train_step(run)
    # All lie in the one bucket of this small model, which makes way for another after the first step
    assert len(places) == 6
    assert places[0] == places[1]
    assert places[3] == places[4] == places[5]
    assert all(len(place) == 1 and None not in place for place in places)
    loop.save(run)
    dist.barrier()  # the checkpoint is rank 0's work
    assert train(config(folder, "dropout-parts"), resume=True) == 0

    # A run that one process began; which tokens each rank reads is noted
    run = start(config(folder, "grown"), resume=True)
    read, seen["read"] = run.sampler.batch, []
    run.sampler.batch = lambda *place: seen["read"].append(read(*place).tolist()) or read(*place)
    assert loop.fit(run) == 0

    # One rank is told to stop: all stop after the same step, with one checkpoint
    run = start(config(folder, "stopped"))
    step = loop.train_step

    def told(run):
        if run.step == 3 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run)

    loop.train_step = told
    assert loop.fit(run) == 128 + signal.SIGTERM
    loop.train_step = step
    seen["stopped_at"] = run.step

    # The same during an evaluation, which all ranks break off, and make up for when they go on
    run = start(config(folder, "stopped-evaluating"))
    nats = loop.block_nats

    def told_while_evaluating(*args, **kwargs):
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return nats(*args, **kwargs)

    loop.block_nats, loop.STOP_CHECK_BATCHES = told_while_evaluating, 1
    assert loop.fit(run) == 128 + signal.SIGTERM
    loop.block_nats = nats
    assert run.step == 3
    dist.barrier()
    assert train(config(folder, "stopped-evaluating"), resume=True) == 0

    # NaN on one rank: no rank moves
    run = start(config(folder, "nan"))
    poison(run, on_step=2)
    for _ in range(2):
        loop.train_step(run)
    before = whole_state(run)
    with pytest.raises(FloatingPointError, match="step 3: loss nan"):
        loop.train_step(run)
    assert_equal_state(whole_state(run), before)

    run = start(config(folder, "nan-skipped"))
    poison(run, on_step=2)
    for _ in range(2):
        loop.train_step(run)
    before = whole_state(run)
    assert loop.train_step(run).skipped
    assert_equal_state(whole_state(run), before)
    assert loop.fit(run) == 0
    seen["skipped_steps"] = run.skipped_steps
    mine = [w.clone() for w in run.bare_model.state_dict().values()]
    for weight in mine:
        others = weight.clone()
        dist.broadcast(others, src=0)
        assert torch.equal(others, weight)

    # Ranks that were started differently, or see different files
    with pytest.raises(InputError, match=r"the ranks disagree about the optim\.lr: rank 0 has 0\.003, rank 1 has 0\.1"):
        start(config(folder, "disagree", *(["--optim.lr=0.1"] if RANK else [])))
    with pytest.raises(InputError, match="the ranks disagree about the step to go on from: rank 0 has 6, rank 1 has 0"):
        start(config(folder, "two", *([f"--run_dir={folder}/elsewhere"] if RANK else [])), resume=True)
    for name, value, message in (
        ("WORLD_SIZE", "3", "3 processes were launched, but accelerate sees 2"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP was asked for, but accelerate shards on GPUs only"),
    ):
        before, os.environ[name] = os.environ.get(name), value
        with pytest.raises(InputError, match=message):
            start(config(folder, "disagree"))
        os.environ.pop(name) if before is None else os.environ.update({name: before})
    return seen


def fitted(folder: Path) -> dict:
    """A head fitted to other weights: by the first rank, for all. Threads alone would change its last digits."""
    torch.set_num_threads(1 + RANK)
    fits, fit = [], init_from.fit_head

    def noted(*args, **kwargs):
        fits.append(RANK)
        return fit(*args, **kwargs)

    init_from.fit_head = noted
    run = start(config(folder, "fitted"))
    seen = {"fits": len(fits), "facts": distributed.model_facts(run.bare_model)}
    init_from.fit_head = fit

    build = setup.start_from

    def differing(*args):
        model, done = build(*args)
        if RANK == 1:
            model.config.hidden_scale += 1e-6
        return model, done

    setup.start_from = differing
    with pytest.raises(InputError, match="the ranks disagree about the model's configuration"):
        start(config(folder, "differing"))
    return seen


def sharding_accelerator(**settings) -> Accelerator:
    """accelerate shards on GPUs only; this makes it take the same path on the CPU, with the launcher's environment."""
    unshard()
    accelerator = Accelerator(**settings)
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState().distributed_type = DistributedType.FSDP  # from here every new state of accelerate takes it
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    return accelerator


def unshard() -> None:
    """What `sharding_accelerator` has told accelerate is forgotten."""
    if PartialState._shared_state:
        PartialState().distributed_type = DistributedType.MULTI_CPU


def sharded(folder: Path) -> dict:
    """FSDP2 through accelerate, with our loop; then fully_shard alone, against the whole model."""
    distributed.Accelerator = sharding_accelerator
    setup.compile_blocks = partial(compile_blocks, backend="eager")
    run = start(config(folder, "fsdp"))
    parameters = dict(run.model.named_parameters())
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in parameters.values())
    assert run.bare_model.lm_head.weight is run.bare_model.transformer.wte.weight
    assert {id(p) for group in run.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in parameters.values()
    }
    # Of the micro-batches of 3 and 1 sequences, the second finds the gradients of the first cut up as the weights are
    shards, begun = list(parameters.values()), []

    def note_gradients(model, _):
        if model.training:
            begun.append([p.grad is not None and p.grad.to_local().shape == p.to_local().shape for p in shards])

    run.model.register_forward_pre_hook(note_gradients)
    assert loop.fit(run) == 0
    assert begun == [[False] * len(shards), [True] * len(shards)] * 6
    dist.barrier()

    assert train(config(folder, "fsdp-dropout")) == 0
    run = start(config(folder, "fsdp-parts"))
    for _ in range(3):
        loop.train_step(run)
    loop.save(run)
    dist.barrier()
    assert train(config(folder, "fsdp-parts"), resume=True) == 0
    assert train(config(folder, "fsdp-grown"), resume=True) == 0  # begun by one process without sharding
    for name in ("fsdp-untied", "fsdp-recomputing", "fsdp-bf16", "fsdp-compiled"):
        assert train(config(folder, name)) == 0
    run = start(config(folder, "fsdp-nan"))
    poison(run, on_step=2)
    for _ in range(2):
        loop.train_step(run)
    before = whole_state(run)
    assert loop.train_step(run).skipped
    assert_equal_state(whole_state(run), before)
    assert loop.fit(run) == 0
    with pytest.raises(InputError, match="muon works on whole matrices, and FSDP2 cuts them up"):
        start(config(folder, "fsdp-muon"))
    distributed.Accelerator = Accelerator
    unshard()
    del os.environ["ACCELERATE_USE_FSDP"]
    assert train(config(folder, "ddp-bf16")) == 0
    learning = {"learn": ["exponent", "hidden_scale", "prior"], "prior": True}
    heads = [{"head": name} for name in PAIRS.values()]
    for head in (*heads, {"head": "mahalanobis_low_rank", **learning}, {"head": "lorentz_harmonic", "prior": True}):
        for tied in (True, False):
            assert_sharding_changes_nothing({**head, "tie_word_embeddings": tied})
    return {}


def assert_sharding_changes_nothing(fields: dict) -> None:
    """Loss, logits, gradients and clipped gradients of float64 models; 101 classes do not divide by 2."""
    settings = HarmonicGPT2Config(
        vocab_size=101, n_embd=32, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **fields,
    )  # fmt: skip
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(HarmonicGPT2ForCausalLM(settings).double().train())
    whole, sharded = models
    for block in sharded.transformer.h:
        fully_shard(block)
    fully_shard(sharded)
    ids = torch.randint(101, (4, 25))  # the same on both ranks; each trains on half of it
    targets = ids[:, 1:].clone()
    targets[0, :20] = -100
    loss = whole(input_ids=ids[:, :-1], shift_labels=targets, num_items_in_batch=76).loss
    loss.backward()
    mine = slice(2 * RANK, 2 * RANK + 2)
    part = sharded(input_ids=ids[mine, :-1], shift_labels=targets[mine], num_items_in_batch=38).loss
    part.backward()
    mean = part.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / 2, loss.detach(), rtol=1e-12, atol=0)

    def assert_same_gradients():
        expected = {name: p.grad for name, p in whole.named_parameters()}
        for name, p in sharded.named_parameters():
            assert isinstance(p, DTensor), name
            assert isinstance(p.grad, DTensor), name
            torch.testing.assert_close(p.grad.full_tensor(), expected[name], rtol=1e-9, atol=1e-13)

    assert_same_gradients()
    norms = [torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01) for model in models]
    assert norms[0] > 0.01
    torch.testing.assert_close(norms[1].full_tensor(), norms[0], rtol=1e-10, atol=0)
    assert_same_gradients()
    with torch.no_grad():
        logits = [model.eval()(input_ids=ids[mine, :-1]).logits for model in models]
    assert logits[1].shape == (2, 24, 101)
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-12)


def _lose_rank_1(settings, lose: Callable[[], None], resume: bool = False) -> None:
    """In step 5, after the checkpoint of step 3."""
    step = loop.train_step

    def lost(run):
        if run.step == 4 and RANK == 1:
            lose()
        return step(run)

    loop.train_step = lost
    loop.train(settings, resume)
    raise AssertionError("trained on without the other rank")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    """Until the launcher asks it to leave; who does not is killed by torchrun 30 s later."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pause()


def dying(folder: Path) -> None:
    assert train(config(folder, "whole")) == 0
    _lose_rank_1(config(folder, "dying"), _die)


def restarted(folder: Path) -> None:
    """By hand after `dying`; rank 1 dies again, and torchrun restarts both."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        _lose_rank_1(config(folder, "dying"), _die, resume=True)
    destroyed, fit = [], loop.fit

    def watched(run):
        weakref.finalize(run.model.reducer, destroyed.append, "reducer")
        weakref.finalize(dist.group.WORLD, destroyed.append, "group")
        return fit(run)

    loop.fit = watched
    assert loop.train(config(folder, "dying"), resume=True) == 0
    assert destroyed == ["reducer", "group"]  # the other way round, leaving could hang: loop.train says why


def hanging(folder: Path) -> None:
    distributed.COLLECTIVE_TIMEOUT = timedelta(seconds=5)
    _lose_rank_1(config(folder, "hanging"), _hang)


if __name__ == "__main__":
    check, folder = (
        {f.__name__: f for f in (plain, fitted, sharded, dying, restarted, hanging)}[sys.argv[1]],
        Path(sys.argv[2]),
    )
    (folder / f"{sys.argv[1]}-{RANK}.json").write_text(json.dumps(check(folder)))
    if dist.is_initialized():
        dist.destroy_process_group()
