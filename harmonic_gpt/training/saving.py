"""Saving a run: all ranks make a snapshot in memory while training waits; the main process writes it in the
background."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from harmonic_gpt.model.modeling_harmonic_gpt2 import HarmonicGPT2ForCausalLM
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.provenance import provenance
from harmonic_gpt.training.run import Run


@dataclass
class Snapshot:
    """Everything that a checkpoint holds, in main memory: later steps do not change it."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: list[dict]  # of every rank
    state: dict[str, Any]  # becomes state.json


def full_copy(value: Any, keep: bool = True, copies: dict | None = None) -> Any:
    """A copy in main memory of nested dicts and lists, shards put together. Tensors that share memory still do.

    Collective: all ranks call it with the same structure. With keep=False the rank takes part and holds nothing.
    """
    copies = {} if copies is None else copies
    if isinstance(value, dict):
        return {key: full_copy(item, keep, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [full_copy(item, keep, copies) for item in value]
    if not isinstance(value, Tensor):
        return value
    if id(value) not in copies:
        # Tied weights are two names of one memory; a shard's local memory stands for the whole
        local = value.to_local() if isinstance(value, DTensor) else value
        key = (local.data_ptr(), local.shape, local.stride()) if local.numel() else id(value)
        if key not in copies:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            copies[key] = whole.detach().to("cpu", copy=True) if keep else None
        copies[id(value)] = copies[key]
    return copies[id(value)]


def sharded_as(state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state of whole tensors, cut into shards where its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        parameter = parameters[index]
        if isinstance(parameter, DTensor):
            for name, value in values.items():
                if value.shape == parameter.shape:
                    on_device = value.to(parameter.device)
                    values[name] = distribute_tensor(on_device, parameter.device_mesh, parameter.placements)
    return state


def rng_state() -> dict:
    """State of every generator that training may draw from, as tensors and plain values (loads with
    weights_only=True)."""
    name, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    kind, words, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [kind, list(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    kind, words, gauss = state["python"]
    random.setstate((kind, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def snapshot(run: Run) -> Snapshot | None:
    """The run's state after its last finished step; None on all ranks but the main one. Collective."""
    accelerator = run.accelerator
    main = accelerator.is_main_process
    weights = full_copy(run.bare_model.state_dict(), keep=main)
    optimizer = full_copy(run.optimizer.state_dict(), keep=main)
    rng = gather_object([rng_state()])
    if not main:
        return None
    state = {
        "step": run.step,
        "tokens": run.step * run.config.train.batch_tokens,
        "skipped_steps": run.skipped_steps,
        "skipped_in_a_row": run.skipped_in_a_row,
        "evaluation_due": run.evaluation_due,
        "config": run.config.model_dump(mode="json"),
        "data": run.data.fingerprint(),
        "world_size": accelerator.num_processes,
        "wandb_id": None if run.tracker is None else run.tracker.wandb_id,
        **provenance(),
    }
    return Snapshot(run.step, weights, optimizer, rng, state)


def write(run: Run, taken: Snapshot) -> Path:
    """A checkpoint folder from a snapshot; then older ones go, and the push to the Hub begins if one is due."""

    def write_files(folder: Path) -> None:
        # Not of the model in training: FSDP has made its class one of torch's, whose file would be saved instead of
        # ours
        with torch.device("meta"):
            model = HarmonicGPT2ForCausalLM(run.model_config)
        model.save_pretrained(folder, state_dict=taken.weights)
        if run.tokenizer is not None:
            run.tokenizer.save_pretrained(folder)
        torch.save(taken.optimizer, folder / ckpt.OPTIMIZER)
        for rank, state in enumerate(taken.rng):
            torch.save(state, folder / ckpt.rng_file(rank))
        (folder / ckpt.STATE).write_text(json.dumps(taken.state, indent=2) + "\n", encoding="utf-8")

    settings, tracker = run.config.checkpoint, run.tracker
    assert tracker is not None  # the main process writes
    path = ckpt.write_checkpoint(run.run_dir, taken.step, write_files)
    tracker.say(f"step {taken.step}: checkpoint {path}")
    last = taken.step == run.config.train.steps
    if run.pusher is not None and (last or taken.step % (settings.every * settings.push_every) == 0):
        if last:
            run.pusher.wait(give_up=lambda: run.stop_signal > 0)
        run.pusher.offer(path)
    spared = {path} | ({run.pusher.path} if run.pusher is not None and run.pusher.path else set())
    ckpt.prune(run.run_dir, settings.keep, settings.keep_every, spared)
    return path


def save(run: Run, background: bool = False) -> Path:
    """Checkpoint the run; returns the folder, which is there only after `finish_saving` if written in the background.

    Collective. Raises what the write before this one raised.
    """
    finish_saving(run)
    taken = snapshot(run)
    path = run.run_dir / ckpt.name_of(run.step)
    if taken is None:
        return path
    if background:
        if run.writer is None:
            run.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # an exiting program waits for it
        run.writing = run.writer.submit(write, run, taken)
        return path
    return write(run, taken)


def finish_saving(run: Run) -> None:
    """Wait until what was begun is written. Raises what went wrong."""
    writing, run.writing = run.writing, None
    if writing is not None:
        writing.result()
