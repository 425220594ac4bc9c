"""The benchmarks of a training step, at toy size on the CPU: what they run, not how fast."""

import json

import pytest
import torch

from benchmarks import train_step

NANOGPT = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    block_size: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(config.vocab_size, config.n_embd)})

    def forward(self, ids, targets):
        logits = self.transformer.wte(ids) @ self.transformer.wte.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


@pytest.fixture
def nanogpt(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(NANOGPT)
    return path


def test_every_contender_is_measured(nanogpt, tmp_path):
    out = tmp_path / "rows.jsonl"
    train_step.main(["--size", "toy", "--rounds", "2", "--nanogpt", str(nanogpt), "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["harmonic", "standard", "GPT2LMHeadModel", "nanoGPT"]
    for row in rows:
        low, high = row["quartiles"]
        assert 0 < low <= row["tokens_per_second"] <= high


def test_compiled_means_the_whole_of_others_and_our_blocks(nanogpt, monkeypatch):
    """nanoGPT's `transformer` is a ModuleDict that is never called: to compile it would compile nothing."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    train_step.main(["--size", "toy", "--rounds", "2", "--compile", "--nanogpt", str(nanogpt)])
    assert compiled == ["GPT2Block"] * 4 + ["GPT2LMHeadModel", "GPT"]
