"""Checkpoints: `RUN/step-N/`, each a ready Hugging Face folder plus what resuming needs. Written whole or not at all.

A checkpoint is written under a temporary name, every file is hashed and flushed to disk, and only then renamed; older
ones are removed only after it has been read back. `RUN/latest` is a link to the newest.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from harmonic_gpt.errors import InputError

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


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: whatever happens, the old contents stay until the new are on the disk."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    _fsync(temporary)
    temporary.replace(path)


def set_aside(checkpoint: Path) -> Path:
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
        if damage(final) is None:
            point_latest(final)
            return final
        set_aside(final)
    for left in run_dir.glob(".writing-*"):  # by a program that was killed
        shutil.rmtree(left)
    temporary = run_dir / f".writing-{final.name}"
    temporary.mkdir(parents=True)
    try:
        write_files(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        checksums = {str(p.relative_to(temporary)): file_sha256(p) for p in files}
        (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
        for path in (*files, temporary / CHECKSUMS, temporary):
            _fsync(path)
        temporary.rename(final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk should not stay full
        if isinstance(error, SafetensorError | RuntimeError):  # what safetensors and torch.save make of a full disk
            raise OSError(f"{final} cannot be written: {error}") from error
        raise
    _fsync(run_dir)
    problem = damage(final)
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
    _fsync(checkpoint.parent)


def damage(checkpoint: Path) -> str | None:
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
        problem = damage(path)
        if problem is None:
            return path
        warn(f"{path} is damaged ({problem}); trying the one before it")
    return None


def read_state(checkpoint: Path) -> dict:
    """state.json of a checkpoint of ours. Raises InputError."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        counts = (
            state["step"],
            state["tokens"],
            state["world_size"] - 1,
            state.get("skipped_steps", 0),
            state.get("skipped_in_a_row", 0),
        )
        texts = (state["config"]["data"]["dir"], state.get("wandb_id") or "")
        if all(type(count) is int and count >= 0 for count in counts) and all(isinstance(text, str) for text in texts):
            return state
        error = "fields of the wrong type"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        error = problem
    raise InputError(f"{checkpoint / STATE}: not the state of a training checkpoint ({error})") from None


def load_state(path: Path) -> dict:
    """Tensors and plain values that `torch.save` wrote. Runs no code from the file. Raises InputError if it holds
    anything else."""
    if not path.is_file():
        raise InputError(f"{path} is missing; resuming needs it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the unpickler, the archive, the system
        raise InputError(f"{path}: not what training writes ({type(error).__name__})") from None


def rng_state() -> dict:
    """State of every generator that training may draw from, as tensors and plain values (loads with
    weights_only=True)."""
    name, keys, position, has_gauss, cached = np.random.get_state()
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


@cache
def provenance() -> dict:
    """Versions and commit that made a run: as they were when this process first asked."""
    names = ("torch", "transformers", "accelerate", "tokenizers", "numpy")
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"versions": {name: version(name) for name in names}, "git_commit": commit}
