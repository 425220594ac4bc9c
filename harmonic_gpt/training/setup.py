"""From a configuration to a run that is ready to train: everything that can be wrong is checked before anything is
written."""

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object, set_seed
from filelock import FileLock, Timeout
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import MixtureSampler, Sampler, TokenFolder, Tokens, open_token_folder, training_sampler
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.perplexity import unigram_nats
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.training import checkpoint as ckpt
from harmonic_gpt.training.init_from import new_model
from harmonic_gpt.training.optimizer import build_optimizer
from harmonic_gpt.training.plan import model_config, plan, training_flops_per_token
from harmonic_gpt.training.pushing import Pusher
from harmonic_gpt.training.saving import sharded_as
from harmonic_gpt.training.spikes import SpikeDetector
from harmonic_gpt.training.trackers import trackers
from harmonic_gpt.training.tracking import Tracker

CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
# Settings that a resumed run may change; all others make it another run
FREE_ON_RESUME = (
    "run_dir", "data.dir", "eval.", "checkpoint.", "tracking.", "train.log_every", "train.micro_batch_size", "train.compile",
    "train.max_skipped_steps",
)  # fmt: skip
# A rank that waits longer than this for the others gives up. Most deaths are noticed at once, by a closed connection;
# this is for a rank that hangs, and must leave the first rank time to finish a checkpoint. Not 10 minutes: accelerate
# drops that value, as equal to NCCL's default, and gloo would wait for 30.
COLLECTIVE_TIMEOUT = timedelta(minutes=15)


@dataclass
class Run:
    """State of one run; plain functions pass it on."""

    config: RunConfig
    run_dir: Path
    accelerator: Accelerator
    model: nn.Module  # as prepared by accelerate
    optimizer: torch.optim.Optimizer
    sampler: Sampler | MixtureSampler
    data: TokenFolder
    tokenizer: object | None
    flops_per_token: float
    spikes: SpikeDetector
    step: int = 0  # finished steps
    skipped_steps: int = 0  # of these, where loss or gradient were not finite and the optimizer did not move
    skipped_in_a_row: int = 0
    stop_signal: int = 0
    # Main process only
    tracker: Tracker | None = None
    pusher: Pusher | None = None
    writer: ThreadPoolExecutor | None = None
    writing: Future | None = None  # the checkpoint on its way to the disk

    @property
    def validation(self) -> Tokens:
        return self.data.tokens("val")

    @property
    def bare_model(self) -> HarmonicGPT2ForCausalLM:
        return self.accelerator.unwrap_model(self.model)


def _start_accelerator(config: RunConfig, log_with: list) -> Accelerator:
    AcceleratorState._reset_state()  # a notebook may train twice: the first run's precision would be kept otherwise
    accelerator = Accelerator(
        log_with=log_with or None,
        mixed_precision={"fp32": "no", "bf16": "bf16"}[config.train.precision],
        # torchrun on a machine without GPUs makes ranks that each believe they are alone, unless this says cpu
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: they would train alone and write "
            "the same folder. On GPUs start with `accelerate launch`; on CPU with `torchrun --nproc_per_node N train.py ...`"
        )
    kind = accelerator.distributed_type
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and launched > 1 and kind != DistributedType.FSDP:
        raise InputError(
            "FSDP was asked for, but accelerate shards on GPUs only; on CPU use `torchrun --nproc_per_node N train.py ...`"
        )
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise InputError("expected plain data parallelism, or FSDP with fsdp_version 2 (configs/accelerate)")
    if accelerator.is_fsdp2:
        # Left alone, accelerate adds gradients up and returns losses in bfloat16. Autocast alone decides, as without
        # sharding
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def _check_ranks_agree(accelerator: Accelerator, facts: dict[str, object]) -> None:
    """Each machine reads its own files: another config, checkpoint or data on one of them would train something else,
    silently."""
    everyone = gather_object([facts])
    for name, first in everyone[0].items():
        for rank, other in enumerate(everyone):
            if other[name] != first:
                raise InputError(
                    f"the ranks disagree about the {name}: rank 0 has {first}, rank {rank} has {other[name]}. All machines need the same "
                    "command and config, and a run_dir on a file system that they share"
                )


def _open_data(config: RunConfig, accelerator: Accelerator) -> tuple[TokenFolder, object | None]:
    """The token folder (prepared first if it is missing and a source is named) and its tokenizer, if it has one."""
    data = config.data
    request = {
        "source": data.source,
        "text_column": data.text_column,
        "validation_share": data.validation_share,
        "tokenizer": data.tokenizer,
        "vocab_size": data.vocab_size if data.tokenizer is None else None,
    }
    path = Path(data.dir).expanduser()
    sources = " ".join(f"--source {s}" for s in ([data.source] if isinstance(data.source, str) else data.source or []))
    if data.source is not None and not path.is_dir():
        if accelerator.num_processes > 1:  # the other ranks would time out waiting
            raise InputError(
                f"{path} is not there yet; before starting {accelerator.num_processes} processes run: "
                f"python -m harmonic_gpt prepare {sources} --out {path}"
            )
        print(f"preparing {path} from {data.source}", file=sys.stderr)
        prepare(out=path, **request)
    tokenizer = load_tokenizer(data.tokenizer) if data.tokenizer else None
    folder = open_token_folder(path, data.vocab_size or (len(tokenizer) if tokenizer else None))
    if data.source is not None:
        folder.check_request(request)
    if tokenizer is None and folder.tokenizer_path is not None:
        tokenizer = load_tokenizer(folder.tokenizer_path)
    if tokenizer is not None:
        folder.check_tokenizer(tokenizer)
    return folder, tokenizer


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run folder: a second program that wants it is refused. The operating system lets go of it when the
    holder dies."""
    if os.environ.get("RANK", "0") != "0":  # the first rank holds it for all
        yield
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"run_dir {run_dir} is a file")
    made = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is training in {run_dir}; wait for it, stop it, or choose another --run_dir"
        ) from None
    try:
        yield
    finally:
        if not (run_dir / CONFIG_FILE).exists():  # never became a run: leave nothing behind
            (run_dir / LOCK_FILE).unlink(missing_ok=True)
            if made and not any(run_dir.iterdir()):
                run_dir.rmdir()
        lock.release()


def _claim_run_dir(config: RunConfig, resume: bool) -> Path | None:
    """The checkpoint to continue from, or None for a fresh run. Raises InputError rather than overwrite a run."""
    run_dir = Path(config.run_dir).expanduser()
    if not run_dir.exists() or all(
        path.name.startswith(".") for path in run_dir.iterdir()
    ):  # beginnings of one that was killed
        return None
    saved = ckpt.checkpoints(run_dir)
    if not saved and not (run_dir / CONFIG_FILE).is_file():
        raise InputError(f"{run_dir} is not empty and not a run of this program; choose another --run_dir")
    if not resume:
        raise InputError(f"{run_dir} holds a run already; add --resume to continue it, or choose another --run_dir")
    found = ckpt.latest_checkpoint(run_dir, lambda text: print(f"warning: {text}", file=sys.stderr))
    if found is None and saved:
        raise InputError(
            f"{run_dir}: every checkpoint is damaged; they are left for inspection. Start anew with another --run_dir"
        )
    if found is not None and (step := ckpt.read_state(found)["step"]) != ckpt.step_of(found):
        raise InputError(f"{found} holds step {step}; give it back the name {ckpt.name_of(step)}")
    if (run_dir / CONFIG_FILE).is_file():
        _check_same_run(load_run_config(run_dir / CONFIG_FILE), config)
    elif found is not None:  # a checkpoint alone, as it comes back from the Hub
        _check_same_run(load_run_config(None, values=ckpt.read_state(found)["config"]), config)
    return found


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _check_same_run(stored: RunConfig, config: RunConfig) -> None:
    before, now = _flat(stored.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    bad = [
        f"{key}: {before[key]} -> {now[key]}"
        for key in before
        if before[key] != now[key] and not key.startswith(FREE_ON_RESUME)
    ]
    if bad:
        raise InputError(
            "the resumed run had another configuration; start a new run_dir, or undo:\n  " + "\n  ".join(bad)
        )


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of handing it back to the kernel.

    A training step on CPU allocates and frees the same hundreds of megabytes again and again; faulting those pages in
    anew took 10 to 25 % of a quickstart step (docs/LOG.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def setup(config: RunConfig, resume: bool) -> Run:
    """Check everything that can be wrong, then build the run. Nothing is written before the checks have passed."""
    run_dir = Path(config.run_dir).expanduser()
    resume_from = _claim_run_dir(config, resume)
    state = ckpt.read_state(resume_from) if resume_from else {}
    accelerator = _start_accelerator(config, trackers(config, run_dir, state.get("step", 0), state.get("wandb_id")))
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    world_size = accelerator.num_processes
    block = config.model.n_positions
    if (config.train.batch_tokens // block) % world_size:
        raise InputError(
            f"train.batch_tokens is {config.train.batch_tokens // block} sequences, which {world_size} ranks cannot share equally"
        )
    folder, tokenizer = _open_data(config, accelerator)
    if state and state.get("data") != folder.fingerprint():
        raise InputError(
            f"{folder.path} is not the data that {resume_from} was trained on: its files or its tokenizer differ"
        )
    facts = {
        "step to go on from": state.get("step", 0),
        "checkpoint": ckpt.file_sha256(resume_from / ckpt.CHECKSUMS) if resume_from else None,
        "data": hashlib.sha256(repr(folder.fingerprint()).encode()).hexdigest(),
    }
    _check_ranks_agree(
        accelerator, facts | _flat(config.model_dump(mode="json", exclude={"run_dir": True, "data": {"dir"}}))
    )
    sampler = training_sampler(folder, config.data.weights, block, config.train.batch_tokens // block, config.seed)
    validation = folder.tokens("val")
    if len(validation) < block + 1:
        raise InputError(
            f"{folder.path}: {len(validation)} validation tokens are less than one block of {block} and its last target"
        )

    set_seed(config.seed)  # every rank draws the same initial weights
    end_of_text = tokenizer.eos_token_id if tokenizer is not None else None
    if resume_from is None:
        model = new_model(config, model_config(config, folder.vocab_size, end_of_text), folder, accelerator)
    else:
        model = _saved_model(resume_from)
    flops = training_flops_per_token(model.config)
    if accelerator.is_main_process:
        print(plan(config, folder.vocab_size, world_size, len(sampler.tokens)), file=sys.stderr)
        unigram = unigram_nats(folder.tokens("train"), validation, config.eval.tokens)
        print(
            f"{'baseline:':<12}predicting by token frequency alone costs {unigram:.3f} nats a validation token",
            file=sys.stderr,
        )
    if config.train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if config.train.compile:
        model.transformer.compile()
    optimizer = build_optimizer(model, config.optim)
    model, optimizer = accelerator.prepare(model, optimizer)
    run = Run(config, run_dir, accelerator, model, optimizer, sampler, folder, tokenizer, flops, SpikeDetector())
    set_seed(config.seed + 1 + accelerator.process_index)  # dropout differs by rank
    if resume_from is not None:
        _restore(run, resume_from, state)
        if accelerator.is_main_process:
            print(f"resuming {resume_from} at step {run.step}", file=sys.stderr)
            ckpt.point_latest(resume_from)  # a killed run may have left the link behind, or on one that is damaged now
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        fresh = not (run_dir / CONFIG_FILE).exists()
        # The first file of a run, and whole: without it a folder that holds anything is none of ours
        ckpt.replace_text(run_dir / CONFIG_FILE, config.to_yaml())
        if resume_from is not None:
            for damaged in (path for path in ckpt.checkpoints(run_dir) if ckpt.step_of(path) > run.step):
                print(f"damaged {damaged.name} is kept as {ckpt.set_aside(damaged)}", file=sys.stderr)
            ckpt.point_latest(resume_from)
        try:
            run.tracker = Tracker(run_dir, config, run.step, accelerator.log_with)
        except InputError:  # a service that does not start: it has not become a run
            if fresh:
                (run_dir / CONFIG_FILE).unlink()
            raise
        accelerator.trackers = accelerator.log_with  # started; `end_training` finishes them
        if config.checkpoint.push_to is not None:
            run.pusher = Pusher(config.checkpoint.push_to, config.checkpoint.push_private, run.tracker.say)
    return run


def _saved_model(path: Path) -> HarmonicGPT2ForCausalLM:
    """Raises InputError unless the weights are just those that config.json asks for; transformers alone would make up
    the rest."""
    try:
        model, found = HarmonicGPT2ForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers and safetensors raise many kinds
        raise InputError(
            f"{path}: its model cannot be loaded ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
        ) from None
    wrong = sorted({str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in found[kind]})
    if wrong:
        raise InputError(f"{path}: weights and config.json do not fit: {', '.join(wrong[:5])}")
    return model


def _restore(run: Run, path: Path, state: dict) -> None:
    """Raises InputError if optimizer or generators are not of this run."""
    rank, ranks = run.accelerator.process_index, run.accelerator.num_processes
    optimizer = ckpt.load_state(path / ckpt.OPTIMIZER)
    rng = ckpt.load_state(path / ckpt.rng_file(rank)) if state["world_size"] == ranks else None
    try:
        run.optimizer.load_state_dict(sharded_as(optimizer, run.optimizer))
        if rng is not None:
            ckpt.restore_rng_state(rng)
        else:  # dropout cannot be continued by other ranks: draw anew, and not what step 1 drew
            set_seed((run.config.seed + 1 + rank + ranks * state["step"]) % 2**31)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: optimizer or random state is not of this run ({type(error).__name__})") from None
    run.step, run.skipped_steps = state["step"], state.get("skipped_steps", 0)
    run.skipped_in_a_row = state.get("skipped_in_a_row", 0)
