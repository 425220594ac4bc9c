"""Two ranks on two devices, by the launcher configs that are shipped: the losses of one rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import loop

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("launcher", ["ddp", "fsdp2"])
def test_two_ranks_are_one(run_config, tmp_path, launcher):
    """fp32, so that only the order of the sums differs."""
    assert loop.train(run_config(run_dir=tmp_path / "one")) == 0
    config = run_config(run_dir=tmp_path / "two")
    (tmp_path / "two.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"configs/accelerate/{launcher}.yaml", "--num_processes", "2"]
    command += ["train.py", "--config", str(tmp_path / "two.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "2 ranks" in done.stderr
    one, two = ([row for row in read_metrics(tmp_path / name) if "loss" in row] for name in ("one", "two"))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)
    assert ckpt.find_corruption((tmp_path / "two" / "latest").resolve()) is None
