from pathlib import Path

import pytest

from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training.loop import train


def _trained(token_folder: Path, run_dir: Path, similarity: str, normalization: str) -> Path:
    settings = {
        "run_dir": run_dir, "data.dir": token_folder,
        "model.similarity": similarity, "model.normalization": normalization,
        "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 32, "model.n_positions": 64,
        "optim.lr": 5e-3, "optim.warmup_steps": 2,
        "train.steps": 30, "train.batch_tokens": 512, "train.log_every": 5, "eval.every": 15,
    }  # fmt: skip
    config = load_run_config(None, [f"--{key}={value}" for key, value in settings.items()])
    assert train(config) == 0
    return run_dir


@pytest.fixture(scope="session")
def harmonic_run(token_folder, tmp_path_factory) -> Path:
    return _trained(token_folder, tmp_path_factory.mktemp("runs") / "tiny-harmonic", "euclidean", "harmax")


@pytest.fixture(scope="session")
def standard_run(token_folder, tmp_path_factory) -> Path:
    return _trained(token_folder, tmp_path_factory.mktemp("runs") / "tiny-standard", "dot", "softmax")


@pytest.fixture(scope="session")
def exported(harmonic_run, tmp_path_factory) -> Path:
    from harmonic_gpt.interop.export import export

    return export(harmonic_run, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="session")
def exported_standard(standard_run, tmp_path_factory) -> Path:
    from harmonic_gpt.interop.export import export

    return export(standard_run, tmp_path_factory.mktemp("exported") / "model-standard")
