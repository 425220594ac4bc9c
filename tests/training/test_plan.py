"""The plan's memory against a count of every tensor of a step, and what is refused before the first one."""

import weakref
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harmonic_gpt.__main__ import main
from harmonic_gpt.errors import InputError
from harmonic_gpt.model import harmonic_loss, harmonic_loss_cuda
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.training import loop, memory, plan, setup
from harmonic_gpt.training.attention import compile_blocks, use_causal_attention
from harmonic_gpt.training.memory import RankDevice, check_memory, rank_device, step_bytes
from harmonic_gpt.training.optimizer import build_optimizer
from harmonic_gpt.training.plan import model_config

CONFIGS = Path(__file__).parents[2] / "configs"
GPU = RankDevice("free on a GPU", 80 * 2**30, cuda=True)
CPU = RankDevice("of main memory", 80 * 2**30, cuda=False)


@dataclass
class Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and their peak."""

    bytes: int = 0
    peak: int = 0
    seen: set[int] = field(default_factory=set)

    def __post_init__(self):
        super().__init__()

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._local_scalar_dense.default:
            return True  # the CPU's loss asks whether labels are in range, and whether the floor can be left out
        out = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.seen:
                size = tensor.untyped_storage().nbytes()
                self.seen.add(key)
                self.bytes += size
                weakref.finalize(tensor.untyped_storage(), self._free, key, size)
        self.peak = max(self.peak, self.bytes)
        return out


@pytest.fixture
def _cuda_program(monkeypatch):
    """The loss's way for GPUs on CPU tensors: its buffers are made, its products and its kernel do nothing."""

    def product(a, b, out=None):
        return a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32) if out is None else out

    def element_pass(u, *_):
        return u.new_empty(len(u)), u.new_empty(len(u)), None

    monkeypatch.setattr(harmonic_loss_cuda, "_mm", product)
    monkeypatch.setattr(harmonic_loss_cuda, "_addmm", lambda *_, **__: None)
    monkeypatch.setattr(harmonic_loss_cuda, "_triton_element_pass", element_pass)
    monkeypatch.setattr(harmonic_loss, "_check_impl", lambda *_: None)


def traced_peak(config: RunConfig, vocab_size: int, micro_batch: int, cuda: bool) -> int:
    """Peak of one or two micro-batches and an update: the real model, loss and optimizer on tensors without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = HarmonicGPT2ForCausalLM(model_config(config, vocab_size, None)).train()
        use_causal_attention(model)
        if config.train.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.lm_head.impl = "triton" if cuda else "auto"
        optimizer = build_optimizer(model, config.optim)
        optimizer.found_inf = torch.zeros(())
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # its state is there from now on
        optimizer.zero_grad()
        live.peak = 0
        for _ in range(1 + (config.train.batch_tokens > micro_batch * config.model.n_positions)):
            ids = torch.empty(micro_batch, config.model.n_positions + 1, dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
                loss = model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:], num_items_in_batch=1).loss
            loss.backward()
            del loss
        optimizer.step()
    return live.peak


def assert_plan_is_the_trace(config: RunConfig, vocab_size: int, micro_batch: int, device: RankDevice) -> None:
    planned = step_bytes(model_config(config, vocab_size, None), config, micro_batch, device)
    assert planned == pytest.approx(traced_peak(config, vocab_size, micro_batch, device.cuda), rel=0.03)


def gpt2_small(head: str, *overrides: str) -> RunConfig:
    """As shipped, but for compiling, which a trace does not follow; see the test of a compiled block."""
    return load_run_config(CONFIGS / f"gpt2_small_{head}.yaml", ["--train.compile=false", *overrides])


@pytest.mark.parametrize("micro_batch", [1, 12, 32])
@pytest.mark.parametrize("head", ["harmonic", "standard"])
@pytest.mark.usefixtures("_cuda_program")
def test_the_memory_of_gpt2_small_is_what_a_trace_counts(head, micro_batch):
    assert_plan_is_the_trace(gpt2_small(head), 50257, micro_batch, GPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["--train.precision=fp32"],
        ["--optim.optimizer=adamw", "--model.tie_word_embeddings=true"],
        ["--train.gradient_checkpointing=true"],
        ["--train.gradient_checkpointing=true", "--model.n_embd=1536"],  # its peak is in a block's backward pass
    ],
)
@pytest.mark.usefixtures("_cuda_program")
def test_the_memory_of_other_settings_is_what_a_trace_counts(overrides):
    assert_plan_is_the_trace(gpt2_small("harmonic", *overrides), 50257, 24, GPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_memory_of_a_cpu_is_what_a_trace_counts(precision):
    config = load_run_config(CONFIGS / "quickstart_harmonic.yaml", [f"--train.precision={precision}"])
    assert_plan_is_the_trace(config, 4096, 8, CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_block_keeps_what_is_planned(precision):
    """Counted where autograd keeps it, with the partitioner that inductor uses; the difference of two depths. It
    keeps a little less than an eager block, for which the plan is exact."""
    overrides = [f"--train.precision={precision}", "--train.compile=true", "--model.n_embd=64", "--model.n_head=2"]
    overrides += ["--model.n_positions=48", "--train.batch_tokens=480"]
    kept = []
    for layers in (1, 3):
        torch._dynamo.reset()
        config = load_run_config(CONFIGS / "gpt2_small_harmonic.yaml", [*overrides, f"--model.n_layer={layers}"])
        model, storages = HarmonicGPT2ForCausalLM(model_config(config, 101, None)).train(), {}
        use_causal_attention(model)
        compile_blocks(model, "aot_eager_decomp_partition")
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor, storages=storages, own=own):
            if (pointer := tensor.untyped_storage().data_ptr()) not in own:
                storages[pointer] = tensor  # alive, so that no other takes its place
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            model.transformer(torch.zeros(3, 48, dtype=torch.int64), use_cache=False)
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
    width = 2 if precision == "bf16" else 4
    rounded = width * 12 * 64 * 64 if width == 2 else 0  # of the block's matrices, for which the plan has a term
    planned = memory._block_bytes(model.config, width, compiled=True) * 3 * 48 + rounded
    assert (kept[1] - kept[0]) / 2 == pytest.approx(planned, rel=0.06)


def test_the_memory_shrinks_with_ranks_that_share_it():
    config = gpt2_small("harmonic", "--optim.optimizer=adamw")
    model = model_config(config, 50257, None)
    sharded = [step_bytes(model, config, 12, GPU._replace(ranks=n, sharded=True)) for n in (2, 4, 8)]
    assert sharded == sorted(sharded, reverse=True)


def test_ranks_with_whole_copies_hold_the_gradients_all_the_time():
    """In the buckets that they exchange. Here one micro-batch is a rank's share, and the loss's memory is the peak."""
    settings, copies = ("--train.batch_tokens=12288", "--train.batch_tokens=24576"), GPU._replace(ranks=2)
    alone, config = (gpt2_small("harmonic", setting) for setting in settings)
    model = model_config(config, 50257, None)
    with torch.device("meta"):
        gradients = 4 * sum(p.numel() for p in HarmonicGPT2ForCausalLM(model).parameters())
    assert step_bytes(model, config, 12, copies) - step_bytes(model, alone, 12, GPU) == gradients


def test_a_micro_batch_that_does_not_fit_is_named_with_one_that_does():
    config = gpt2_small("harmonic", "--train.micro_batch_size=64")
    model = model_config(config, 50257, None)
    assert check_memory(model, config, GPU) is None

    small = GPU._replace(where="free on NVIDIA A10", bytes=22 * 2**30)
    with pytest.raises(InputError, match=r"micro_batch_size 64 needs about .* 22\.00 GiB free on NVIDIA A10") as error:
        check_memory(model, config, small)
    largest = int(str(error.value).rpartition("--train.micro_batch_size=")[2])
    assert step_bytes(model, config, largest, small) <= small.bytes < step_bytes(model, config, largest + 1, small)
    assert f"micro-batches of up to {largest} sequences fit" in plan.plan(config, 50257, small)

    borderline = small._replace(bytes=step_bytes(model, config, 64, small))
    assert "it may run out of memory" in check_memory(model, config, borderline)


def test_a_plan_without_data_has_the_vocabulary_that_will_be_prepared(tmp_path):
    nowhere = f"--data.dir={tmp_path}/nowhere"
    for overrides, size in (
        (["--data.source=pydocs"], "4,096"),
        (["--data.source=pydocs", "--data.vocab_size=300"], "300"),
        (["--data.source=pydocs", "--data.tokenizer=gpt2"], "50,257"),
        ([], "50,257"),
    ):
        assert f"vocabulary {size} (assumed" in plan.dry_run(load_run_config(None, [nowhere, *overrides]))


def test_a_plan_names_a_folder_without_training_tokens(run_config, token_folder, tmp_path):
    (tmp_path / "val.bin").write_bytes((token_folder / "val-00000.bin").read_bytes())
    with pytest.raises(InputError, match="no train tokens; it has val"):
        plan.dry_run(run_config(data__dir=tmp_path))


def test_a_device_too_small_for_one_sequence_says_what_helps():
    config = gpt2_small("standard", "--model.n_positions=4096", "--train.batch_tokens=491520")
    model = model_config(config, 50257, None)
    recomputing = config.model_copy(update={"train": config.train.model_copy(update={"gradient_checkpointing": True})})
    least = step_bytes(model, recomputing, 1, GPU)
    assert least < 0.8 * step_bytes(model, config, 1, GPU)
    with pytest.raises(InputError, match=r"use --train\.gradient_checkpointing=true --train\.micro_batch_size=1"):
        check_memory(model, config, GPU._replace(bytes=least))
    with pytest.raises(InputError, match=r"too little for one sequence of this model: .*fsdp2\.yaml"):
        check_memory(model, config, GPU._replace(bytes=2**30))


@pytest.fixture
def refused(run_config, tmp_path, capsys):
    """A function that starts a run through the command line and returns its one line, after checking the rest."""

    def start(**overrides) -> str:
        (tmp_path / "config.yaml").write_text(run_config(**overrides).to_yaml())
        with pytest.raises(SystemExit) as caught:
            main(["train", "--config", str(tmp_path / "config.yaml")])
        assert caught.value.code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("error: "))

    return start


def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(refused, monkeypatch):
    """On a device that is a fake: it says that it has 2 KiB."""
    monkeypatch.setattr(setup, "rank_device", lambda *_: RankDevice("of a fake", 2**11, cuda=False))
    assert "there are 0.00 GiB of a fake, too little for one sequence" in refused()


def test_a_gpu_too_old_for_bf16_is_refused_before_anything_is_written(refused, monkeypatch):
    """With fakes: no GPU is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    line = refused(train__precision="bf16")
    assert "bf16 needs a GPU of compute capability 8.0 or later (Ampere); Tesla T4 has 7.5" in line
    assert line.endswith("use --train.precision=fp32")


def test_free_memory_is_the_devices(monkeypatch):
    """With fakes: no GPU is asked."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**29)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a fake")
    assert rank_device(torch.device("cuda"), 4, sharded=True) == RankDevice("free on a fake", 7 * 2**30, True, 4, True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = rank_device(torch.device("cpu"))
    assert whole.bytes > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert rank_device(torch.device("cpu")).bytes == whole.bytes // 2


def test_what_fits_just_so_is_warned_of(run_config, monkeypatch, capsys):
    config = run_config()
    needed = step_bytes(model_config(config, 300, None), config, 4, CPU)
    monkeypatch.setattr(setup, "rank_device", lambda *_: RankDevice("of a fake", needed, cuda=False))
    assert loop.train(config) == 0
    assert "warning: train.micro_batch_size 4 needs about" in capsys.readouterr().err
