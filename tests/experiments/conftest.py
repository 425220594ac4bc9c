"""The programs of experiments/ as modules, and queues whose runs take a second."""

import sys
from pathlib import Path

import pytest
import yaml

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))


@pytest.fixture
def queue(token_folder, tmp_path):
    """A function that writes a queue of the given blocks and returns its path."""

    def write(*blocks: dict) -> Path:
        tiny = {
            "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "model.n_positions": 32, "train.steps": 6,
            "train.batch_tokens": 128, "train.log_every": 1, "optim.warmup_steps": 2, "eval.every": 3,
            "eval.tokens": 512,
        }  # fmt: skip
        arms = {
            "harmonic": {"head": "harmonic", "set": {"model.exponent": 8.0}, "tiny": {"optim.lr": 0.01}},
            "standard": {"head": "standard", "set": {}, "tiny": {"optim.lr": 0.01}},
        }
        defaults = {"question": "q", "sizes": ["tiny"], "arms": ["harmonic"]}
        blocks = [block if "configs" in block else defaults | block for block in blocks]
        whole = {"base": {"data.dir": str(token_folder)}, "sizes": {"tiny": tiny}, "arms": arms, "experiments": blocks}
        path = tmp_path / "queue.yaml"
        path.write_text(yaml.safe_dump(whole))
        return path

    return write


@pytest.fixture
def train(queue, tmp_path, monkeypatch):
    """A function that trains the one run of a block: its row, and the trained state."""
    import queue_file
    import run_queue

    from harmonic_gpt.training import loop

    setup, states = loop.setup, []
    monkeypatch.setattr(loop, "setup", lambda *args, **kwargs: states.append(setup(*args, **kwargs)) or states[-1])

    def train(block: dict) -> tuple[dict, loop.Run]:
        (run,) = queue_file.read_queue(queue(block))
        return run_queue.train_one(run, tmp_path / "trained"), states[-1]

    return train
