"""Checkpoints: `RUN/step-N/`, each a ready Hugging Face folder plus what resuming needs. Written whole or not at all.

A checkpoint is written under a temporary name, every file is hashed and flushed to disk, and only then renamed; older
ones are removed only after it has been read back. `RUN/latest` is a link to the newest.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from harmonic_gpt.errors import InputError, is_out_of_memory, reason_of
from harmonic_gpt.files import file_sha256, sync

CONFIG_FILE = "config.yaml"  # of a run, beside its checkpoints
CHECKSUMS = "checksums.json"
STATE = "state.json"
OPTIMIZER = "optimizer.pt"
LATEST = "latest"
_NAME = re.compile(r"step-(\d+)")


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def rng_file(rank: int) -> str:
    return f"rng-{rank}.pt"


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted((p for p in run_dir.glob("step-*") if p.is_dir() and step_of(p) >= 0), key=step_of)


def quarantine(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint: kept for inspection, and neither resumed, counted nor pruned any more."""
    count = len(list(checkpoint.parent.glob(f"damaged-{checkpoint.name}-*")))
    return checkpoint.rename(checkpoint.with_name(f"damaged-{checkpoint.name}-{count}"))


def write_checkpoint(run_dir: Path, step: int, write_files: Callable[[Path], None]) -> Path:
    """Atomically create `run_dir/step-N` from what `write_files(folder)` puts into a folder, and read it back.

    A damaged checkpoint of that step is moved aside, for inspection; one that verifies already holds this very state.
    Raises OSError if it cannot be written, or does not read back as it was written: nothing else has changed then.
    """
    final = run_dir / name_of(step)
    if final.exists():
        if find_corruption(final) is None:
            point_latest(final)
            return final
        quarantine(final)
    for left in run_dir.glob(".writing-*"):  # by a program that was killed
        shutil.rmtree(left)
    temporary = run_dir / f".writing-{final.name}"
    temporary.mkdir(parents=True)
    try:
        write_files(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        checksums = {p.relative_to(temporary).as_posix(): file_sha256(p) for p in files}
        (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
        for path in (*files, temporary / CHECKSUMS, temporary):
            sync(path)
        temporary.rename(final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk should not stay full
        if isinstance(error, SafetensorError | RuntimeError):  # what safetensors and torch.save make of a full disk
            raise OSError(f"{final} cannot be written: {error}") from error
        raise
    sync(run_dir)
    problem = find_corruption(final)
    if problem is not None:
        raise OSError(f"{final} does not read back as it was written: {problem}")
    point_latest(final)
    return final


def prune(run_dir: Path, keep: int, keep_every: int | None, spared: set[Path]) -> None:
    """Remove all but the newest `keep` checkpoints, those of steps that are multiples of `keep_every`, and `spared`
    ones."""
    for old in checkpoints(run_dir)[:-keep]:
        if old not in spared and not (keep_every and step_of(old) % keep_every == 0):
            old.rename(run_dir / f".removing-{old.name}")  # a folder called step-N is whole
    for removed in run_dir.glob(".removing-*"):  # those of a program that was killed, too
        shutil.rmtree(removed)


def point_latest(checkpoint: Path) -> None:
    """`RUN/latest` becomes a link to this checkpoint, in one step."""
    link = checkpoint.parent / f".{LATEST}"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    link.replace(checkpoint.parent / LATEST)
    sync(checkpoint.parent)


def find_corruption(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if every checksum holds."""
    try:
        checksums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        for name, expected in checksums.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if file_sha256(path) != expected:
                return f"{name} does not match its checksum"
        # What training or loading would read. Notes of the user's own may lie beside it
        present = {p.name for p in checkpoint.iterdir() if p.suffix in (".json", ".pt", ".py", ".safetensors")}
        if unlisted := sorted(present - {CHECKSUMS} - checksums.keys()):
            return f"{unlisted[0]} has no checksum"
    except (OSError, ValueError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read ({error})"
    return None


def latest_checkpoint(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are named, skipped and left in place."""
    for path in reversed(checkpoints(run_dir)):
        problem = find_corruption(path)
        if problem is None:
            return path
        warn(f"{path} is damaged ({problem}); trying the one before it")
    return None


def read_state(checkpoint: Path) -> dict:
    """state.json of a checkpoint of ours. Raises InputError."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        counts = [state["step"], state["tokens"], state["world_size"] - 1]
        counts += [state.get("skipped_steps", 0), state.get("skipped_in_a_row", 0)]
        texts = (state["config"]["data"]["dir"], state.get("wandb_id") or "")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError("a count is not a number")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name is not a text")
        return state
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint / STATE}: not the state of a training checkpoint ({error})") from error


def load_state(path: Path) -> dict:
    """Tensors and plain values that `torch.save` wrote; no code is run. Raises InputError if there is anything else."""
    if not path.is_file():
        raise InputError(f"{path} is missing; resuming needs it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many kinds
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path}: not what training writes ({type(error).__name__}: {reason_of(error)})") from error
