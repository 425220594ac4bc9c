"""Training: setup, then fit. Losses are sums of nats over tokens, divided once by the number of target tokens of the
global batch."""

import math
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from harmonic_gpt.likelihood import block_nats, inputs_and_targets
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.training.optimizer import learning_rate, step_unless
from harmonic_gpt.training.plan import peak_flops, training_flops_per_token
from harmonic_gpt.training.prefetch import Prefetch
from harmonic_gpt.training.run import Run
from harmonic_gpt.training.run_dir import lock_run_dir
from harmonic_gpt.training.saving import finish_saving, save
from harmonic_gpt.training.setup import setup
from harmonic_gpt.training.stopping import stop_signals

STOP_CHECK_BATCHES = 8  # of an evaluation on several ranks, which can only stop together


class Step(NamedTuple):
    """What a step reports, the same on every rank. loss: nats per token. stop: some rank was told to stop. skipped: no
    update. learned: the head's learned numbers after it."""

    loss: float
    grad_norm: float
    stop: bool
    skipped: bool
    learned: dict[str, float]


def train_step(run: Run) -> Step:
    """One optimizer update, of all ranks together.

    If loss or gradient norm is not finite on any rank, no rank's optimizer moves and the step is skipped; after more
    than `train.max_skipped_steps` of these in a row it raises FloatingPointError, and at once if one of the head's
    learned numbers has left its range. The device decides that by itself:
    the host reads what has become of the step once, when all of its work is queued.
    """
    config, accelerator = run.config, run.accelerator
    micro_batches = run.batches[run.step].split(config.train.micro_batch_size)  # (B, T + 1) each
    rows = len(micro_batches[0]) if config.train.compile else 0  # a shorter last one would be compiled anew
    loss_sum = torch.zeros((), device=accelerator.device)
    for i, ids in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        inputs, targets = inputs_and_targets(ids, rows)
        # Ranks exchange gradients once, after the last one; sharded ones each time, or every rank would hold them whole
        postpone = not last and not accelerator.is_fsdp2
        with accelerator.no_sync(run.model) if postpone else nullcontext():
            # Ranks' gradients are averaged: undo it, so that the sum is divided once by the global tokens
            with accelerator.autocast():  # accelerate leaves it out of a sharded model's forward
                loss = run.model(
                    input_ids=inputs,
                    shift_labels=targets,
                    num_items_in_batch=config.train.batch_tokens / accelerator.num_processes,
                ).loss
            # accelerate divides by its own accumulation setting (which its environment may set); ours is these
            # micro-batches
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
        loss_sum += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), config.optim.grad_clip)
    grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
    # Mean over ranks of (rank sum / tokens of a rank) = global sum / global tokens. A NaN of one rank reaches all
    totals = torch.stack([loss_sum, grad_norm.to(loss_sum), torch.full_like(loss_sum, float(run.stop_signal > 0))])
    totals = accelerator.reduce(totals, "mean")
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, config.train.steps, config.optim) * group.get("lr_scale", 1.0)
    step_unless(~totals[:2].isfinite().all(), run.optimizer)
    # DistributedDataParallel's stay where they are (`make_gradients`)
    run.optimizer.zero_grad(set_to_none=not isinstance(run.model, DistributedDataParallel))

    run.batches.begin(run.step + 1)
    loss_value, norm_value, stop, *logarithms = torch.cat([totals, _learned_logarithms(run).to(totals)]).tolist()
    learned = _learned(run, logarithms)
    run.skipped_in_a_row = 0 if math.isfinite(loss_value) and math.isfinite(norm_value) else run.skipped_in_a_row + 1
    if run.skipped_in_a_row > config.train.max_skipped_steps:
        raise FloatingPointError(
            f"step {run.step + 1}: loss {loss_value}, gradient norm {norm_value}; the weights have not been updated"
        )
    run.skipped_steps += run.skipped_in_a_row > 0
    run.step += 1
    return Step(loss_value, norm_value, stop > 0, run.skipped_in_a_row > 0, learned)


@torch.no_grad()
def _learned_logarithms(run: Run) -> torch.Tensor:
    """(K,) logarithms of the head's learned numbers, on the device. Collective where weights are sharded."""
    head = run.bare_model.lm_head
    parameters = [getattr(head, f"log_{name}") for name in head.learned_numbers()]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    return torch.cat(whole) if whole else torch.empty(0, device=run.accelerator.device)


def _learned(run: Run, logarithms: list[float]) -> dict[str, float]:
    """The learned numbers by name. Raises FloatingPointError for one that has left its range."""
    numbers = {}
    for (name, (constant, _)), logarithm in zip(
        run.bare_model.lm_head.learned_numbers().items(), logarithms, strict=True
    ):
        numbers[name] = math.exp(min(logarithm, 700.0))
        if not constant.low < numbers[name] < constant.high:
            raise FloatingPointError(
                f"step {run.step + 1}: the head's {name} is {numbers[name]:g}; it must stay between {constant.low:g} "
                f"and {constant.high:g}"
            )
    return numbers


@torch.no_grad()
def evaluate(run: Run, may_stop: bool = False) -> dict | None:
    """Validation loss over `eval.tokens` targets, in whole blocks shared out over the ranks.

    With `may_stop`, None as soon as some rank has been told to stop. Collective. Raises FloatingPointError.
    """
    block, accelerator = run.config.model.n_positions, run.accelerator
    ranks, size = accelerator.num_processes, run.config.train.micro_batch_size
    validation = run.validation
    n_blocks = max(1, (len(validation) - 1) // block)
    mine = range(accelerator.process_index, n_blocks, ranks)

    def read(batch: int) -> np.ndarray:
        blocks = [validation.read(i * block, block + 1) for i in mine[batch * size : (batch + 1) * size]]
        return np.array(blocks, np.int64).reshape(-1, block + 1)

    # Sharded weights are put together in every forward pass, by all ranks: one that has no block left joins in with
    # rows that cost nothing
    n_batches = math.ceil(math.ceil(n_blocks / ranks) / size)
    rows = size if run.config.train.compile else 1  # a shorter last batch would be compiled anew
    nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    run.model.eval()
    with Prefetch(read, n_batches, accelerator.device) as batches:
        for i in range(n_batches):
            if may_stop and (ranks == 1 or i % STOP_CHECK_BATCHES == 0) and _told_to_stop(run):
                run.model.train()
                return None
            ids = batches[i]  # (B, T + 1)
            batches.begin(i + 1)
            with accelerator.autocast():
                nats += block_nats(run.bare_model, ids, rows=rows)
    run.model.train()
    centers = run.bare_model.lm_head.weight.detach()  # (V, D)
    norms = (centers.full_tensor() if isinstance(centers, DTensor) else centers).norm(dim=1)
    nats = accelerator.reduce(nats, "sum")
    total, mean, std = torch.stack([nats, norms.mean().to(nats), norms.std().to(nats)]).tolist()
    loss = total / (n_blocks * block)
    if not math.isfinite(loss):
        raise FloatingPointError(f"step {run.step}: validation loss {loss}")
    return {
        "val_loss": loss,
        "val_perplexity": math.exp(min(loss, 700.0)),
        "val_tokens": n_blocks * block,
        "center_norm_mean": mean,
        "center_norm_std": std,
    }


def _told_to_stop(run: Run) -> bool:
    """Whether any rank has been. Collective; only several ranks need the device for it."""
    if run.accelerator.num_processes == 1:
        return run.stop_signal > 0
    told = torch.tensor(float(run.stop_signal > 0), device=run.accelerator.device)
    return run.accelerator.reduce(told, "sum").item() > 0


@dataclass
class _Window:
    """Steps since the last row of metrics, and when they began."""

    step: int
    started: float


def fit(run: Run) -> int:
    """Train to the last step. Returns 0, or 128 + the signal's number if one stopped it (after a checkpoint)."""

    def on_stop(number: int) -> None:
        run.stop_signal = number

    with stop_signals(on_stop):
        try:
            return _steps(run)
        except FloatingPointError as error:
            try:
                finish_saving(run)
            except OSError as failed:  # two troubles at once: the run ends for the first
                print(f"warning: {failed}", file=sys.stderr)
            good = ckpt.latest_checkpoint(run.run_dir, lambda _: None)
            raise FloatingPointError(f"{error}. Last good checkpoint: {good or 'none yet'}") from error
        finally:
            run.batches.close()
            if run.writer:
                run.writer.shutdown()  # whatever ended the run: what was begun is written before the folder is let go
            if run.tracker:
                run.tracker.close()


def _steps(run: Run) -> int:
    """Step, log, evaluate, save, until the last step or a stop signal; the exit code."""
    config = run.config
    stop = run.evaluation_due and not _evaluate_and_log(run, may_stop=True)
    window = _Window(run.step, time.perf_counter())
    run.model.train()
    while run.step < config.train.steps and not stop:
        step = train_step(run)
        last = run.step == config.train.steps
        stop = step.stop and not last
        _log_step(run, step, window)
        paused = time.perf_counter()
        run.evaluation_due = run.step % config.eval.every == 0 or last
        if run.evaluation_due and not stop:
            stop = not _evaluate_and_log(run, may_stop=not last)
        if run.step % config.checkpoint.every == 0 or last or stop:
            save(run, background=config.checkpoint.background)
        window.started += time.perf_counter() - paused  # evaluation and saving are not training speed
    return _finish(run, stop)


def _log_step(run: Run, step: Step, window: _Window) -> None:
    """A finished step to the main process's bar, metrics and warnings; one in `train.log_every` is a row of metrics."""
    config, tracker = run.config, run.tracker
    if tracker is None:
        return
    tracker.advance()
    if step.skipped:
        tracker.log(run.step, skipped_steps=run.skipped_steps)
        tracker.say(
            f"warning: step {run.step}: loss {step.loss}, gradient norm {step.grad_norm}: no update; "
            f"{run.skipped_steps} steps skipped so far"
        )
        return
    if run.spikes.is_spike(step.loss):
        tracker.log(run.step, loss_spike=step.loss)
        tracker.say(f"warning: step {run.step}: the loss jumped to {step.loss:.3f}, gradient norm {step.grad_norm:.2f}")
    if run.step % config.train.log_every and run.step not in (1, config.train.steps):
        return
    now = time.perf_counter()
    speed = (run.step - window.step) * config.train.batch_tokens / (now - window.started)
    window.step, window.started = run.step, now
    lr = learning_rate(run.step - 1, config.train.steps, config.optim)
    row = {"tokens": run.step * config.train.batch_tokens, "loss": step.loss, "lr": lr, "grad_norm": step.grad_norm}
    row["tokens_per_second"] = speed
    row |= {f"head_{name}": value for name, value in step.learned.items()}
    shown = {"loss": f"{step.loss:.3f}", "lr": f"{lr:.2e}", "|g|": f"{step.grad_norm:.2f}", "tok/s": f"{speed:,.0f}"}
    if peak := peak_flops(run.accelerator.device, config.train.precision):
        flops = training_flops_per_token(run.model_config)
        row["mfu"] = speed * flops / peak / run.accelerator.num_processes
        shown["MFU"] = f"{row['mfu']:.1%}"
    tracker.log(run.step, **row)
    tracker.progress(run.step, **shown)


def _evaluate_and_log(run: Run, may_stop: bool) -> bool:
    """False if the evaluation was broken off: it stays due, and a resumed run begins with it."""
    result = evaluate(run, may_stop)
    run.evaluation_due = result is None
    if result is not None and run.tracker:
        run.tracker.log(run.step, **result)
        run.tracker.say(
            f"step {run.step}: validation {result['val_loss']:.4f} nats per token over {result['val_tokens']:,} tokens"
        )
    return result is not None


def _finish(run: Run, stopped: bool) -> int:
    """Wait for what is being written (and, of a complete run, pushed); the exit code."""
    finish_saving(run)
    if not stopped:
        if run.pusher:  # after a stop signal the push is abandoned
            run.pusher.wait(give_up=lambda: run.stop_signal > 0)
        return 0
    number = run.stop_signal or signal.SIGTERM  # another rank's signal stops this one too
    run.accelerator.wait_for_everyone()  # a launcher kills the others half a minute after the first rank has left
    if run.tracker:
        run.tracker.say(f"stopped by {signal.Signals(number).name} after step {run.step}; continue with --resume")
    return 128 + number


def train(config: RunConfig, resume: bool = False, verify: bool = False) -> int:
    """Train what `config` says; returns the exit code of the process (0, or 128 + signal).

    `verify`: read the token files anew, whatever is noted about them.
    """
    with lock_run_dir(Path(config.run_dir).expanduser()):
        run = setup(config, resume, verify)
        if run.step >= config.train.steps:
            print(f"{run.run_dir} is finished: step {run.step} of {config.train.steps}", file=sys.stderr)
        # Python's reference to the process group must outlive DDP's: the group's destructor joins gloo's threads, and
        # one of these may still want the GIL to drop a tensor. Called through Python's reference it releases the GIL;
        # through DDP's it would hang.
        group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
        try:
            return fit(run)
        finally:
            run.accelerator.end_training()
            del run
            del group
