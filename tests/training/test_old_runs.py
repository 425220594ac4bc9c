"""A run that version 0.1.0 began goes on: its checkpoint verifies, loads, and resumes bit by bit with the old names."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import loop

OLD_RUN = Path(__file__).with_name("run_of_version_0_1.zip")  # its first three steps of six: Muon, dropout, head_lr
LOSSES = [5.4874796867370605, 5.426412105560303, 5.371389389038086]  # of steps 4 to 6, by version 0.1.0


@pytest.fixture
def old_run(tmp_path):
    """The run's folder, and beside it the data that it was trained on."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, count in (("train", 4000), ("val", 400)):
        ids = np.cumsum(rng.integers(0, 4, count)) % 61
        ids.astype("<u2").tofile(tmp_path / "data" / f"{name}.bin")
    with zipfile.ZipFile(OLD_RUN) as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def test_it_loads_and_resumes(old_run):
    loaded = load_model(str(old_run))
    assert (loaded.head, loaded.step) == ("harmonic", 3)
    config = load_run_config(old_run / "config.yaml", [f"--run_dir={old_run}", f"--data.dir={old_run.parent / 'data'}"])
    assert config.optim.head_lr_scale == 2.0  # `head_lr` in that file
    assert loop.train(config, resume=True) == 0
    losses = [row["loss"] for row in read_metrics(old_run) if "loss" in row]
    assert losses == pytest.approx(LOSSES, rel=1e-6)
