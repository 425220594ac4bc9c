"""Training: setup, then fit. Losses are sums of nats over tokens, divided once by the number of target tokens of the
global batch."""

import math
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor

from harmonic_gpt.evaluation.perplexity import block_nats
from harmonic_gpt.run_config import RunConfig
from harmonic_gpt.training import checkpoint as ckpt
from harmonic_gpt.training.optimizer import learning_rate
from harmonic_gpt.training.saving import finish_saving, save
from harmonic_gpt.training.setup import Run, exclusive, setup
from harmonic_gpt.training.tracking import peak_flops


class Step(NamedTuple):
    """What a step reports, the same on every rank. loss: nats a token. stop: some rank was told to stop. skipped: no
    update."""

    loss: float
    grad_norm: float
    stop: bool
    skipped: bool


def train_step(run: Run) -> Step:
    """One optimizer update, of all ranks together.

    If loss or gradient norm is not finite on any rank, no rank's optimizer moves and the step is skipped; after more
    than `train.max_skipped_steps` of these in a row it raises FloatingPointError.
    """
    config, accelerator = run.config, run.accelerator
    batch = torch.from_numpy(
        run.sampler.batch(run.step, accelerator.process_index, accelerator.num_processes)
    )  # (B, T + 1)
    batch = batch.to(accelerator.device, non_blocking=True)
    micro_batches = batch.split(config.train.micro_batch_size)
    loss_sum = torch.zeros((), device=accelerator.device)
    for i, ids in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        with accelerator.no_sync(run.model) if not last else nullcontext():
            # Ranks' gradients are averaged: undo it, so that the sum is divided once by the global tokens
            with accelerator.autocast():  # accelerate leaves it out of a sharded model's forward
                loss = run.model(
                    input_ids=ids[:, :-1],
                    shift_labels=ids[:, 1:],
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
    loss_value, norm_value, stop = accelerator.reduce(totals, "mean").tolist()
    run.skipped_in_a_row = 0 if math.isfinite(loss_value) and math.isfinite(norm_value) else run.skipped_in_a_row + 1
    if run.skipped_in_a_row > config.train.max_skipped_steps:
        raise FloatingPointError(
            f"step {run.step + 1}: loss {loss_value}, gradient norm {norm_value}; the weights have not been updated"
        )
    if run.skipped_in_a_row == 0:
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(run.step, config.train.steps, config.optim) * group.get("lr_scale", 1.0)
        run.optimizer.step()
    else:
        run.skipped_steps += 1
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return Step(loss_value, norm_value, stop > 0, run.skipped_in_a_row > 0)


@torch.no_grad()
def evaluate(run: Run) -> dict:
    """Validation loss over the leading `eval.tokens` targets, in whole blocks shared out over the ranks."""
    block, accelerator = run.config.model.n_positions, run.accelerator
    n_blocks = max(1, min(run.config.eval.tokens, len(run.validation) - 1) // block)
    mine = list(range(accelerator.process_index, n_blocks, accelerator.num_processes))
    run.model.eval()
    size = run.config.train.micro_batch_size
    nats = torch.zeros((), dtype=torch.float64)
    # Sharded weights are put together in every forward pass, by all ranks: one that has no block left joins in without
    # targets
    for i in range(0, math.ceil(n_blocks / accelerator.num_processes), size):
        blocks = mine[i : i + size]
        ids = torch.stack(
            [torch.from_numpy(run.validation.read(b * block, block + 1)) for b in blocks or [0]]
        )  # (B, T + 1)
        with accelerator.autocast():
            part = block_nats(run.bare_model, ids.to(accelerator.device), ignore_leading=0 if blocks else block)
        nats += part.double().cpu()
    run.model.train()
    loss = accelerator.reduce(nats.to(accelerator.device), "sum").item() / (n_blocks * block)
    if not math.isfinite(loss):
        raise FloatingPointError(f"step {run.step}: validation loss {loss}")
    centers = run.bare_model.lm_head.weight.detach()  # (V, D)
    norms = (centers.full_tensor() if isinstance(centers, DTensor) else centers).norm(dim=1)
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
    peak = (
        peak_flops(torch.cuda.get_device_name())
        if accelerator.device.type == "cuda" and config.train.precision == "bf16"
        else None
    )
    exit_code, window_start, window_step = 0, time.perf_counter(), run.step
    run.model.train()
    try:
        while run.step < config.train.steps:
            loss, grad_norm, stop, skipped = train_step(run)
            step, last = run.step, run.step == config.train.steps
            lr = learning_rate(step - 1, config.train.steps, config.optim)
            if tracker:
                tracker.advance()
            if skipped and tracker:
                tracker.log(step, skipped_steps=run.skipped_steps)
                tracker.say(
                    f"warning: step {step}: loss {loss}, gradient norm {grad_norm}: no update; {run.skipped_steps} steps skipped so far"
                )
            elif tracker and run.spikes.is_spike(loss):
                tracker.log(step, loss_spike=loss)
                tracker.say(f"warning: step {step}: the loss jumped to {loss:.3f}, gradient norm {grad_norm:.2f}")
            if (step % config.train.log_every == 0 or last or step == 1) and not skipped:
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
            if (step % config.eval.every == 0 or last) and not (
                stop and not last
            ):  # who is told to stop has little time
                result = evaluate(run)
                if tracker:
                    tracker.log(step, **result)
                    tracker.say(
                        f"step {step}: validation {result['val_loss']:.4f} nats a token over {result['val_tokens']:,} tokens"
                    )
            if step % config.checkpoint.every == 0 or last or stop:
                save(run, background=config.checkpoint.background)
            window_start += time.perf_counter() - paused  # evaluation and saving are not training speed
            if stop and not last:
                number = run.stop_signal or signal.SIGTERM  # another rank's signal stops this one too
                exit_code = 128 + number
                finish_saving(run)
                accelerator.wait_for_everyone()  # a launcher kills the others half a minute after the first rank has left
                if tracker:
                    tracker.say(f"stopped by {signal.Signals(number).name} after step {step}; continue with --resume")
                break
        finish_saving(run)
        if run.pusher and exit_code == 0:  # who is told to stop does not wait for the network
            run.pusher.wait(give_up=lambda: run.stop_signal > 0)
    except FloatingPointError as error:
        try:
            finish_saving(run)
        except OSError as failed:  # two troubles at once: the run ends for the first
            print(f"warning: {failed}", file=sys.stderr)
        good = ckpt.latest_checkpoint(run.run_dir, lambda _: None)
        raise FloatingPointError(f"{error}. Last good checkpoint: {good or 'none yet'}") from None
    finally:
        if run.writer:
            run.writer.shutdown()  # whatever ended the run: what was begun is written before the folder is let go
        for number, handler in previous.items():
            signal.signal(number, handler)
        if tracker:
            tracker.close()
    return exit_code


def train(config: RunConfig, resume: bool = False) -> int:
    """Train what `config` says; returns the exit code of the process (0, or 128 + signal)."""
    with exclusive(Path(config.run_dir).expanduser()):
        run = setup(config, resume)
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
