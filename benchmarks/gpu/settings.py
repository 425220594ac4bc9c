"""What the stages of a measurement share: the device, the folders, and the runs that they train."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.training.run import Run
from harmonic_gpt.training.setup import setup

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
VOCAB_SIZE = 50257  # GPT-2's
TOY_VOCAB_SIZE = 300
# What makes a run of configs/ a matter of a second on a CPU
TOY = {
    "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 32, "model.n_positions": 32,
    "train.batch_tokens": 256, "train.micro_batch_size": 4, "eval.tokens": 256,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """work: folder for runs and token files. toy: every stage at the smallest size, on the CPU. data: token folder of
    the pair; None: the embedded corpus. nanogpt: nanoGPT's model.py, if there is one."""

    work: Path
    toy: bool = False
    data: Path | None = None
    nanogpt: Path | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"

    @property
    def vocab_size(self) -> int:
        return TOY_VOCAB_SIZE if self.toy else VOCAB_SIZE


def gpt2_small(settings: Settings, head: str, **overrides: object) -> RunConfig:
    """configs/gpt2_small_HEAD.yaml with changes, at toy size beside those of TOY; "__" in a name stands for a dot."""
    changes = (TOY if settings.toy else {}) | {name.replace("__", "."): value for name, value in overrides.items()}
    arguments = [f"--{name}={'null' if value is None else value}" for name, value in changes.items()]
    return load_run_config(CONFIGS / f"gpt2_small_{head}.yaml", arguments)


@contextmanager
def running(config: RunConfig) -> Iterator[Run]:
    """A run as train.py sets it up, for its steps to be measured."""
    run = setup(config, resume=False)
    try:
        yield run
    finally:
        run.batches.close()
        if run.tracker:
            run.tracker.close()


def random_tokens(settings: Settings) -> Path:
    """A folder of random tokens in nanoGPT's format, for what measures speed alone. Made once."""
    folder = settings.work / "random-tokens"
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name, count in (("val", 2**12), ("train", 2**12 if settings.toy else 2**24)):
        if not (file := folder / f"{name}.bin").exists():
            generator.integers(settings.vocab_size, size=count, dtype=np.uint16).astype("<u2").tofile(file)
    return folder
