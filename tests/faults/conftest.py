"""Runs that are hurt. Each test records (fault, expected, seen); HARMONIC_GPT_WRITE_TABLE=1 puts the rows into
docs/explanation/reliability.md."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harmonic_gpt.files import file_sha256
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/reliability.md"
BEGIN, END = "<!-- made by tests/faults: begin -->\n", "<!-- end -->\n"
_rows: list[tuple[str, str, str]] = []


@dataclass
class Ended:
    code: int  # minus the signal's number, if one killed it
    text: str


class Victims:
    """Starts `train` in children of one prepared process; see victim.py."""

    def __init__(self, folder: Path):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.victim"]
        self.program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        self.log = folder / "log"

    def ask(self, **request):
        self.program.stdin.write(json.dumps(request) + "\n")
        self.program.stdin.flush()
        return json.loads(self.program.stdout.readline())

    def train(self, config: Path, run_dir: Path, *options: str, **fault) -> Ended:
        arguments = ["--config", str(config), f"--run_dir={run_dir}", "--resume", *options]
        code = self.ask(arguments=arguments, fault=fault, run_dir=str(run_dir), log=str(self.log))
        return Ended(code, self.log.read_text())

    def begin(self, config: Path, run_dir: Path, **fault) -> int:
        """Start one and leave it running; returns what `end` takes."""
        arguments = ["--config", str(config), f"--run_dir={run_dir}"]
        return self.ask(arguments=arguments, fault=fault, run_dir=str(run_dir), log=f"{run_dir}.log", go_on=True)

    def end(self, pid: int) -> int:
        return self.ask(wait_for=pid)


@pytest.fixture(scope="session")
def victims(tmp_path_factory):
    started = Victims(tmp_path_factory.mktemp("victims"))
    yield started
    started.program.stdin.close()
    started.program.wait()


@pytest.fixture(scope="module")
def config(token_folder, tmp_path_factory) -> Path:
    """6 steps of two micro-batches with dropout, a checkpoint every 2, one kept."""
    import yaml

    settings = {
        "data": {"dir": str(token_folder)},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 32, "dropout": 0.1},
        "optim": {"lr": 3e-3, "warmup_steps": 2},
        "train": {"steps": 6, "batch_tokens": 256, "micro_batch_size": 4, "log_every": 1},
        "eval": {"every": 3, "tokens": 256},
        "checkpoint": {"every": 2, "keep": 1},
    }
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def outcome(run_dir: Path) -> tuple[list, str]:
    """What two runs have in common if and only if they are the same: every loss, and the final weights."""
    latest = run_dir / "latest"
    assert ckpt.find_corruption(latest) is None
    losses = [(row["step"], row["loss"]) for row in read_metrics(run_dir) if "loss" in row]
    return losses, file_sha256(latest / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(victims, config, tmp_path_factory) -> tuple[list, str]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    ended = victims.train(config, run_dir)
    assert ended.code == 0, ended.text
    return outcome(run_dir)


@pytest.fixture
def record() -> Callable[[str, str, str], None]:
    return lambda fault, expected, seen: _rows.append((fault, expected, seen))


def pytest_sessionfinish():
    if _rows and os.environ.get("HARMONIC_GPT_WRITE_TABLE"):
        table = ["| fault | expected | seen |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in _rows)]
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(before + BEGIN + "\n".join(table) + "\n" + END + after, encoding="utf-8")
