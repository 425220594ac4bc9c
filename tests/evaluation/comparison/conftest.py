"""Two trained runs and one comparison of them, with every figure: what takes seconds is made once in a process."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harmonic_gpt.evaluation.comparison import figures, measure
from harmonic_gpt.evaluation.comparison.compare import compare
from harmonic_gpt.evaluation.measures import probes
from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.training import loop


@pytest.fixture(scope="session")
def runs(tmp_path_factory, token_folder) -> Path:
    """A folder with the runs `harmonic` and `standard`: 12 steps, checkpoints of steps 6 and 12."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "data.dir": token_folder, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 32, "model.n_positions": 32,
        "train.batch_tokens": 256, "train.steps": 12, "train.log_every": 1, "optim.warmup_steps": 2, "optim.lr": 1e-2,
        "eval.every": 4, "checkpoint.every": 6,
    }  # fmt: skip
    for head in ("harmonic", "standard"):
        chosen = settings | {"run_dir": folder / head}
        if head == "standard":
            chosen |= {"model.similarity": "dot", "model.normalization": "softmax"}
        loop.train(load_run_config(None, [f"--{key}={value}" for key, value in chosen.items()]))
    return folder


@pytest.fixture(scope="session")
def full(runs, tmp_path_factory) -> SimpleNamespace:
    """A comparison with everything in it, of two checkpoints of one run with another run: `folder`, `results`."""
    folder = tmp_path_factory.mktemp("full")
    texts = folder / "mood.csv"
    texts.write_text("text,label\n" + "".join(f"The cat {w} {i}.,{w}\n" for i in range(20) for w in ("sees", "finds")))
    arms = {"harmonic": ["harmonic/step-000006", "harmonic/step-000012"], "standard": ["standard"]}
    named = {arm: [str(runs / run) for run in members] for arm, members in arms.items()}
    with pytest.MonkeyPatch.context() as patch:  # probes that stop early: most of the time is theirs
        patch.setattr(measure, "PROBE_EXAMPLES", 50)
        patch.setattr(probes, "ITERATIONS", 10)
        results = compare(named, folder / "report", tokens=600, reading_tokens=8000, probe_files=[texts])
    return SimpleNamespace(folder=folder / "report", results=results)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than all the rest; test_figures.py looks at what `full` drew."""
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])
