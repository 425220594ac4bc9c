"""Training: setup, then fit. Losses are sums of nats over tokens, divided once by the number of target tokens of the global batch."""

import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import NANOGPT_VOCAB_SIZE, MixtureSampler, Sampler, TokenFolder, Tokens, open_token_folder, training_sampler
from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.perplexity import block_nats, unigram_nats
from harmonic_gpt.model.configuration_harmonic_gpt2 import HarmonicGPT2Config
from harmonic_gpt.model.harmonic_head import CHUNK_BYTES, CUDA_CHUNK_BYTES
from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.training import checkpoint as ckpt
from harmonic_gpt.training.init_from import new_model
from harmonic_gpt.training.optimizer import build_optimizer, learning_rate
from harmonic_gpt.training.trackers import trackers
from harmonic_gpt.training.tracking import Tracker, peak_flops

CONFIG_FILE = "config.yaml"
# Settings that a resumed run may change; all others make it another run
FREE_ON_RESUME = ("run_dir", "data.dir", "eval.", "checkpoint.", "tracking.", "train.log_every", "train.micro_batch_size", "train.compile")


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
    step: int = 0  # finished updates
    tracker: Tracker | None = None  # main process only
    stop_signal: int = 0

    @property
    def validation(self) -> Tokens:
        return self.data.tokens("val")

    @property
    def bare_model(self) -> HarmonicGPT2ForCausalLM:
        return self.accelerator.unwrap_model(self.model)


def model_config(config: RunConfig, vocab_size: int, end_of_text: int | None) -> HarmonicGPT2Config:
    model = config.model
    return HarmonicGPT2Config(
        vocab_size=vocab_size,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        **model.model_dump(exclude={"dropout", "init_from"}) | ({"exponent": "sqrt"} if model.exponent == "fit" else {}),
    )


def training_flops_per_token(config: HarmonicGPT2Config) -> float:
    """Forward and backward matrix products of one token: 6 a weight that multiplies, 12 L D T of attention (PaLM, appendix B)."""
    matmul_weights = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * matmul_weights + 12 * config.n_layer * config.n_embd * config.n_positions


def plan(config: RunConfig, vocab_size: int, world_size: int, train_tokens: int | None = None, assumed: str = "") -> str:
    """What a run will do, before it does it. Sizes only: builds no weights."""
    with torch.device("meta"):
        hf_config = model_config(config, vocab_size, None)
        model = HarmonicGPT2ForCausalLM(hf_config)
    total = sum(p.numel() for p in model.parameters())
    embeddings = model.transformer.wte.weight.numel() + model.transformer.wpe.weight.numel()
    t, m = config.train, config.model
    sequences, micro = t.batch_tokens // m.n_positions, min(t.micro_batch_size, t.batch_tokens // m.n_positions // world_size or 1)
    all_tokens = t.steps * t.batch_tokens
    width = 2 if t.precision == "bf16" else 4
    layers = 1 if t.gradient_checkpointing else m.n_layer
    # weights, gradients, two moments; about 16 activations of (B, T, D) a block; the head's gradient of the centers and its chunk
    memory = 16 * total + micro * m.n_positions * m.n_embd * width * 16 * layers + 4 * vocab_size * m.n_embd
    memory += 3 * CUDA_CHUNK_BYTES // 2 if torch.cuda.is_available() else CHUNK_BYTES
    head = {("euclidean", "harmax"): "harmonic", ("dot", "softmax"): "standard"}.get((m.similarity, m.normalization), "ablation")
    n = "to be fitted" if m.exponent == "fit" else f"{hf_config.head_exponent:.4g}"
    exponent = f", exponent {n}" if m.normalization == "harmax" else ""
    rows = {
        "run": config.run_dir,
        "head": f"{head} ({m.similarity} + {m.normalization}{exponent}), hidden_scale {hf_config.hidden_scale:.4g}, "
        f"center_std {hf_config.center_std:.4g}, {'tied' if m.tie_word_embeddings else 'untied'}",
        "model": f"{m.n_layer} layers x {m.n_embd}, {m.n_head} heads, {m.n_positions} positions, vocabulary {vocab_size:,}{assumed}",
        "parameters": f"{total:,} ({total - embeddings:,} without token and position embeddings)",
        "data": config.data.dir + (f", {train_tokens:,} training tokens, {all_tokens / train_tokens:.2f} epochs" if train_tokens else ""),
        "schedule": f"{t.steps:,} steps x {t.batch_tokens:,} tokens = {all_tokens:,} tokens, "
        f"lr {config.optim.lr:g}, warmup {config.optim.warmup_steps:,}",
        "batch": f"{sequences} sequences = {world_size} ranks x {math.ceil(sequences / world_size / micro)} micro-batches of up to {micro}",
        "compute": f"{training_flops_per_token(hf_config) * all_tokens:.3g} FLOPs, {t.precision}",
        "memory": f"about {memory / 2**30:.1f} GiB a rank (estimate)",
    }
    return "\n".join(f"{name + ':':<12}{text}" for name, text in rows.items())


def dry_run(config: RunConfig) -> str:
    """The plan, without reading data: the vocabulary is the manifest's if the folder exists, else the configured or GPT-2's."""
    if Path(config.data.dir).expanduser().is_dir():
        folder = open_token_folder(Path(config.data.dir).expanduser(), config.data.vocab_size)
        return plan(config, folder.vocab_size, 1, len(folder.tokens("train")))
    vocab_size = config.data.vocab_size or NANOGPT_VOCAB_SIZE
    return plan(config, vocab_size, 1, assumed=f" (assumed: {config.data.dir} is not there yet)")


def _start_accelerator(config: RunConfig, log_with: list) -> Accelerator:
    AcceleratorState._reset_state()  # a notebook may train twice: the first run's precision would be kept otherwise
    accelerator = Accelerator(
        log_with=log_with or None,
        mixed_precision={"fp32": "no", "bf16": "bf16"}[config.train.precision],
        # torchrun on a machine without GPUs makes ranks that each believe they are alone, unless this says cpu
        cpu=not torch.cuda.is_available(),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise InputError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: they would train alone and write "
            "the same folder. On GPUs start with `accelerate launch`; on CPU with `torchrun --nproc_per_node N train.py ...`"
        )
    return accelerator


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


def _claim_run_dir(config: RunConfig, resume: bool) -> Path | None:
    """The checkpoint to continue from, or None for a fresh run. Raises InputError rather than overwrite a run."""
    run_dir = Path(config.run_dir).expanduser()
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"run_dir {run_dir} is a file")
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return None
    if not (run_dir / CONFIG_FILE).is_file():
        raise InputError(f"{run_dir} is not empty and not a run of this program; choose another --run_dir")
    if not resume:
        raise InputError(f"{run_dir} holds a run already; add --resume to continue it, or choose another --run_dir")
    _check_same_run(load_run_config(run_dir / CONFIG_FILE), config)
    found = ckpt.latest_checkpoint(run_dir, lambda text: print(f"warning: {text}", file=sys.stderr))
    if found is None and ckpt.checkpoints(run_dir):
        raise InputError(f"{run_dir}: every checkpoint is damaged; they are left for inspection. Start anew with another --run_dir")
    return found


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _check_same_run(stored: RunConfig, config: RunConfig) -> None:
    before, now = _flat(stored.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    bad = [f"{key}: {before[key]} -> {now[key]}" for key in before if before[key] != now[key] and not key.startswith(FREE_ON_RESUME)]
    if bad:
        raise InputError("the resumed run had another configuration; start a new run_dir, or undo:\n  " + "\n  ".join(bad))


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of handing it back to the kernel.

    A training step on CPU allocates and frees the same hundreds of megabytes again and again; faulting those pages in anew took
    10 to 25 % of a quickstart step (docs/LOG.md).
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
        raise InputError(f"{folder.path} is not the data that {resume_from} was trained on: its files or its tokenizer differ")
    sampler = training_sampler(folder, config.data.weights, block, config.train.batch_tokens // block, config.seed)
    validation = folder.tokens("val")
    if len(validation) < block + 1:
        raise InputError(f"{folder.path}: {len(validation)} validation tokens are less than one block of {block} and its last target")

    set_seed(config.seed)  # every rank draws the same initial weights
    end_of_text = tokenizer.eos_token_id if tokenizer is not None else None
    if resume_from is None:
        model = new_model(config, model_config(config, folder.vocab_size, end_of_text), folder, accelerator)
    else:
        model = HarmonicGPT2ForCausalLM.from_pretrained(resume_from, dtype=torch.float32)
    flops = training_flops_per_token(model.config)
    if accelerator.is_main_process:
        print(plan(config, folder.vocab_size, world_size, len(sampler.tokens)), file=sys.stderr)
        unigram = unigram_nats(folder.tokens("train"), validation, config.eval.tokens)
        print(f"{'baseline:':<12}predicting by token frequency alone costs {unigram:.3f} nats a validation token", file=sys.stderr)
    if config.train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if config.train.compile:
        model.transformer.compile()
    optimizer = build_optimizer(model, config.optim)
    model, optimizer = accelerator.prepare(model, optimizer)
    run = Run(config, run_dir, accelerator, model, optimizer, sampler, folder, tokenizer, flops)
    set_seed(config.seed + 1 + accelerator.process_index)  # dropout differs by rank
    if resume_from is not None:
        _restore(run, resume_from)
        if accelerator.is_main_process:
            print(f"resuming {resume_from} at step {run.step}", file=sys.stderr)
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        run.tracker = Tracker(run_dir, config, run.step, accelerator.log_with)
        accelerator.trackers = accelerator.log_with  # started; `end_training` finishes them
        (run_dir / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
    return run


def _restore(run: Run, path: Path) -> None:
    run.optimizer.load_state_dict(torch.load(path / ckpt.OPTIMIZER, map_location="cpu", weights_only=True))
    rng = path / f"rng-{run.accelerator.process_index}.pt"
    if rng.exists():  # absent only when the world size has grown
        ckpt.restore_rng_state(torch.load(rng, weights_only=True))
    run.step = ckpt.step_of(path)


def save(run: Run) -> Path:
    """Write a checkpoint from all ranks; returns its folder."""
    accelerator = run.accelerator
    shared = run.run_dir / ".rng"
    if accelerator.is_main_process:
        shutil.rmtree(shared, ignore_errors=True)  # of a save that was killed
        shared.mkdir()
    accelerator.wait_for_everyone()
    name = f"rng-{accelerator.process_index}.pt"
    torch.save(ckpt.rng_state(), shared / name)
    accelerator.wait_for_everyone()
    path = run.run_dir / f"step-{run.step:06d}"
    if accelerator.is_main_process:

        def write_files(folder: Path) -> None:
            run.bare_model.save_pretrained(folder, state_dict=accelerator.get_state_dict(run.model))
            if run.tokenizer is not None:
                run.tokenizer.save_pretrained(folder)
            torch.save(run.optimizer.state_dict(), folder / ckpt.OPTIMIZER)
            for rank in range(accelerator.num_processes):
                (shared / f"rng-{rank}.pt").rename(folder / f"rng-{rank}.pt")
            shutil.rmtree(shared)
            state = {
                "step": run.step,
                "tokens": run.step * run.config.train.batch_tokens,
                "config": run.config.model_dump(mode="json"),
                "data": run.data.fingerprint(),
                "world_size": accelerator.num_processes,
                "wandb_id": run.tracker.wandb_id,
                **ckpt.provenance(),
            }
            (folder / ckpt.STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

        ckpt.write_checkpoint(run.run_dir, run.step, write_files, run.config.checkpoint.keep)
    accelerator.wait_for_everyone()
    return path


def train_step(run: Run) -> tuple[float, float, bool]:
    """One optimizer update. Returns (loss in nats a token, gradient norm, whether any rank was told to stop).

    Raises FloatingPointError before the optimizer moves if loss or gradient norm is not finite.
    """
    config, accelerator = run.config, run.accelerator
    batch = torch.from_numpy(run.sampler.batch(run.step, accelerator.process_index, accelerator.num_processes))  # (B, T + 1)
    batch = batch.to(accelerator.device, non_blocking=True)
    micro_batches = batch.split(config.train.micro_batch_size)
    loss_sum = torch.zeros((), device=accelerator.device)
    for i, ids in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        with accelerator.no_sync(run.model) if not last else nullcontext():
            # DistributedDataParallel averages gradients over ranks: undo it, so that the sum is divided once by the global tokens
            loss = run.model(
                input_ids=ids[:, :-1],
                shift_labels=ids[:, 1:],
                num_items_in_batch=config.train.batch_tokens / accelerator.num_processes,
            ).loss
            # accelerate divides by its own accumulation setting (which its environment may set); ours is these micro-batches
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
        loss_sum += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), config.optim.grad_clip)
    totals = torch.stack([loss_sum, torch.full_like(loss_sum, float(run.stop_signal > 0))])
    # mean over ranks of (rank sum / tokens of a rank) = global sum / global tokens
    loss_value, stop = accelerator.reduce(totals, "mean").tolist()
    norm_value = float(grad_norm)
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        raise FloatingPointError(f"step {run.step + 1}: loss {loss_value}, gradient norm {norm_value}; the weights have not been updated")
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, config.train.steps, config.optim)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return loss_value, norm_value, stop > 0


@torch.no_grad()
def evaluate(run: Run) -> dict:
    """Validation loss over the leading `eval.tokens` targets, in whole blocks shared out over the ranks."""
    block, accelerator = run.config.model.n_positions, run.accelerator
    n_blocks = max(1, min(run.config.eval.tokens, len(run.validation) - 1) // block)
    mine = range(accelerator.process_index, n_blocks, accelerator.num_processes)
    run.model.eval()
    size = run.config.train.micro_batch_size
    nats = torch.zeros((), dtype=torch.float64)
    for i in range(0, len(mine), size):
        ids = torch.stack([torch.from_numpy(run.validation.read(b * block, block + 1)) for b in mine[i : i + size]])  # (B, T + 1)
        with accelerator.autocast():
            nats += block_nats(run.bare_model, ids.to(accelerator.device)).double().cpu()
    run.model.train()
    totals: Tensor = accelerator.reduce(torch.stack([nats.float()]).to(accelerator.device), "sum")
    loss = totals[0].item() / (n_blocks * block)
    if not math.isfinite(loss):
        raise FloatingPointError(f"step {run.step}: validation loss {loss}")
    norms = run.bare_model.lm_head.weight.detach().norm(dim=1)
    return {
        "val_loss": loss,
        "val_perplexity": math.exp(min(loss, 700.0)),
        "val_tokens": n_blocks * block,
        "center_norm_mean": norms.mean().item(),
        "center_norm_std": norms.std().item(),
    }


def fit(run: Run) -> int:
    """Train to the last step. Returns 0, or 128 + the signal's number if one stopped it (after a checkpoint)."""
    config, accelerator, tracker = run.config, run.accelerator, run.tracker

    def on_signal(number, _frame):
        run.stop_signal = number

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    peak = peak_flops(torch.cuda.get_device_name()) if accelerator.device.type == "cuda" and config.train.precision == "bf16" else None
    exit_code, window_start, window_step = 0, time.perf_counter(), run.step
    run.model.train()
    try:
        while run.step < config.train.steps:
            loss, grad_norm, stop = train_step(run)
            step, last = run.step, run.step == config.train.steps
            lr = learning_rate(step - 1, config.train.steps, config.optim)
            if tracker:
                tracker.advance()
            if step % config.train.log_every == 0 or last or step == 1:
                seconds = time.perf_counter() - window_start
                speed = (step - window_step) * config.train.batch_tokens / seconds
                row = {"tokens": step * config.train.batch_tokens, "loss": loss, "lr": lr, "grad_norm": grad_norm}
                row |= {"tokens_per_second": speed}
                shown = {"loss": f"{loss:.3f}", "lr": f"{lr:.2e}", "|g|": f"{grad_norm:.2f}", "tok/s": f"{speed:,.0f}"}
                if peak:
                    row["mfu"] = speed * run.flops_per_token / peak / accelerator.num_processes
                    shown["MFU"] = f"{row['mfu']:.1%}"
                if tracker:
                    tracker.log(step, **row)
                    tracker.progress(step, **shown)
                window_start, window_step = time.perf_counter(), step
            paused = time.perf_counter()
            if (step % config.eval.every == 0 or last) and not (stop and not last):  # who is told to stop has little time
                result = evaluate(run)
                if tracker:
                    tracker.log(step, **result)
                    tracker.say(f"step {step}: validation {result['val_loss']:.4f} nats a token over {result['val_tokens']:,} tokens")
            if step % config.checkpoint.every == 0 or last or stop:
                path = save(run)
                if tracker:
                    tracker.say(f"step {step}: checkpoint {path}")
            window_start += time.perf_counter() - paused  # evaluation and saving are not training speed
            if stop and not last:
                number = run.stop_signal or signal.SIGTERM  # another rank's signal stops this one too
                exit_code = 128 + number
                if tracker:
                    tracker.say(f"stopped by {signal.Signals(number).name} after step {step}; continue with --resume")
                break
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if tracker:
            tracker.close()
    return exit_code


def train(config: RunConfig, resume: bool = False) -> int:
    """Train what `config` says; returns the exit code of the process (0, or 128 + signal)."""
    run = setup(config, resume)
    if run.step >= config.train.steps:
        print(f"{run.run_dir} is finished: step {run.step} of {config.train.steps}", file=sys.stderr)
    try:
        return fit(run)
    finally:
        run.accelerator.end_training()
