"""Tiny corpora, token folders and configs. Everything is made here; nothing is fetched."""

import atexit
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

if os.environ.get("HARMONIC_GPT_GPU_TESTS") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # where it sees a GPU our code takes it; read when torch looks for one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` has a process on each core; read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Read on import. Each process has its own, and a new one: other versions of trackio have other tables
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="harmonic-gpt-tests-trackio-")

import huggingface_hub.constants
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported and when a kernel is defined

from harmonic_gpt import HarmonicGPT2Config
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.run_config import RunConfig, load_run_config
from tests.hub_stand_in import TOKEN, HubStandIn

atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

SHARED = Path(__file__).parents[2] / "shared"
pytest.register_assert_rewrite("tests.model.loss_cases")
HEADS = [("euclidean", "harmax"), ("euclidean", "softmax"), ("dot", "harmax"), ("dot", "softmax")]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A .jsonl of 120 short documents of patterned English."""
    rng = random.Random(0)
    nouns, verbs = ["cat", "dog", "bird", "house", "river", "tree"], ["sees", "likes", "finds", "leaves"]
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    with path.open("w") as file:
        for i in range(120):
            text = " ".join(f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)}." for _ in range(40))
            file.write(json.dumps({"text": f"Story {i}. {text}"}) + "\n")
    return path


@pytest.fixture(scope="session")
def token_folder(corpus, tmp_path_factory) -> Path:
    """The corpus, prepared with a byte-level BPE of 300 tokens."""
    return prepare(str(corpus), tmp_path_factory.mktemp("tokens") / "folder", vocab_size=300, validation_share=0.2)


@pytest.fixture
def run_config(token_folder, tmp_path):
    """A function that makes a RunConfig for a run of seconds; keyword arguments are overrides with __ for dots."""

    def make(**overrides) -> RunConfig:
        settings = {
            "run_dir": tmp_path / "run", "data__dir": token_folder,
            "model__n_layer": 2, "model__n_head": 2, "model__n_embd": 32, "model__n_positions": 32,
            "optim__lr": 3e-3, "optim__warmup_steps": 2, "train__steps": 6, "train__batch_tokens": 256,
            "train__micro_batch_size": 4, "train__log_every": 1,
            "eval__every": 3, "eval__tokens": 512, "checkpoint__every": 3,
        } | overrides  # fmt: skip
        return load_run_config(None, [f"--{key.replace('__', '.')}={value}" for key, value in settings.items()])

    return make


@pytest.fixture
def tiny_config():
    """A function that makes a model config of a few thousand parameters."""

    def make(**fields) -> HarmonicGPT2Config:
        return HarmonicGPT2Config(
            **{
                "vocab_size": 101,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": 24,
                "bos_token_id": 0,
                "eos_token_id": 0,
            }
            | fields
        )

    return make


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback that huggingface_hub talks to, with a valid token."""
    stand_in = HubStandIn()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    for name, value in {"ENDPOINT": stand_in.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)  # between its retries
    yield stand_in
    stand_in.close()
