"""The folder of a run: who holds it, and whether it may be begun or continued. Nothing here overwrites anything."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.checkpoint import CONFIG_FILE

LOCK_FILE = ".lock"
# Folders of services (trackers.py), which may start and fail before there is a run
SERVICES = ("wandb", "tensorboard")
# Settings that a resumed run may change; all others make it another run
FREE_ON_RESUME = (
    "run_dir", "data.dir", "eval.", "checkpoint.", "tracking.", "train.log_every", "train.micro_batch_size",
    "train.compile", "train.max_skipped_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Where a run begins: anew, or from a checkpoint with its state.json."""

    checkpoint: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return self.state.get("step", 0)


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Hold the run folder: a second program that wants it is refused. The operating system lets go of it when the
    holder dies."""
    if os.environ.get("RANK", "0") != "0":  # the first rank holds it for all
        yield
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"--run_dir {run_dir}: is a file")
    made = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another process is training in {run_dir}; wait for it, stop it, or choose another --run_dir"
        ) from error
    try:
        yield
    finally:
        if not (run_dir / CONFIG_FILE).exists():  # never became a run: leave nothing behind
            (run_dir / LOCK_FILE).unlink(missing_ok=True)
            if made and not any(run_dir.iterdir()):
                run_dir.rmdir()
        lock.release()


def find_start(config: RunConfig, resume: bool) -> Start:
    """The checkpoint to continue from, or a fresh start. Raises InputError rather than overwrite a run."""
    run_dir = Path(config.run_dir).expanduser()
    if not run_dir.exists() or all(_before_a_run(path.name) for path in run_dir.iterdir()):
        return Start()
    saved = ckpt.checkpoints(run_dir)
    if not saved and not (run_dir / CONFIG_FILE).is_file():
        raise InputError(f"{run_dir} is not empty and not a run of this program; choose another --run_dir")
    if not resume:
        raise InputError(f"{run_dir} holds a run already; add --resume to continue it, or choose another --run_dir")
    newest = ckpt.latest_checkpoint(run_dir, lambda text: print(f"warning: {text}", file=sys.stderr))
    if not saved and (run_dir / ckpt.LATEST).is_symlink():
        raise InputError(
            f"{run_dir}: its checkpoints are gone ({ckpt.LATEST} points to {os.readlink(run_dir / ckpt.LATEST)}). Put "
            "them back, or start anew with another --run_dir"
        )
    if newest is None and saved:
        raise InputError(
            f"{run_dir}: every checkpoint is damaged; they are left for inspection. Start anew with another --run_dir"
        )
    state = {} if newest is None else ckpt.read_state(newest)
    if newest is not None and state["step"] != ckpt.step_of(newest):
        raise InputError(f"{newest} holds step {state['step']}; give it back the name {ckpt.name_of(state['step'])}")
    if (run_dir / CONFIG_FILE).is_file():
        _check_same_run(load_run_config(run_dir / CONFIG_FILE), config)
    elif state:  # a checkpoint alone, as it comes back from the Hub
        _check_same_run(load_run_config(None, values=state["config"]), config)
    return Start(newest, state)


def _before_a_run(name: str) -> bool:
    """Whether a file may be there before the run is. Beginnings of one that was killed have names with a dot."""
    return name.startswith(".") or name in SERVICES


def flat(values: dict, prefix: str = "") -> dict:
    """{"a.b": c} of {"a": {"b": c}}."""
    flattened: dict = {}
    for key, value in values.items():
        flattened |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flattened


def _check_same_run(stored: RunConfig, config: RunConfig) -> None:
    before, now = flat(stored.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in before | now
        if before.get(key) != now.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if changed:
        raise InputError(
            "the resumed run had another configuration; choose another --run_dir, or undo:\n  " + "\n  ".join(changed)
        )
