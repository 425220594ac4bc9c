"""A step makes the host wait once, after all of its work is queued; an evaluation once, at its end."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harmonic_gpt.model import harmonic_head
from harmonic_gpt.training import loop

ATEN = torch.ops.aten
READS = (ATEN._local_scalar_dense.default, ATEN.is_nonzero.default, ATEN.nonzero.default, ATEN.equal.default)


class Reads(TorchDispatchMode):
    """Notes in `events` each operator that would make a GPU's host wait. `methods` are those that a CPU tensor answers
    without an operator."""

    methods = ("tolist", "numpy", "cpu")

    def __init__(self, events: list[str], monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.events = events
        for name in self.methods:
            monkeypatch.setattr(torch.Tensor, name, self._noted(getattr(torch.Tensor, name), name))

    def _noted(self, method, name: str):
        def noted(*args, **kwargs):
            self.events.append(name)
            return method(*args, **kwargs)

        return noted

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in READS:
            self.events.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def _plain_loss(monkeypatch):
    """Our loss reads values back on a CPU, where that costs nothing; on a GPU its kernel does not."""

    def cross_entropy(hidden_states, centers, labels, *, reduction, **_):
        return F.cross_entropy((hidden_states @ centers.mT).flatten(0, 1), labels.flatten(), reduction=reduction)

    monkeypatch.setattr(harmonic_head, "head_cross_entropy", cross_entropy)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.usefixtures("_plain_loss")
def test_a_step_reads_once_after_its_update_is_queued(run_config, monkeypatch, optimizer):
    run = loop.setup(run_config(optim__optimizer=optimizer, train__gradient_checkpointing=True), resume=False)
    events = []
    run.optimizer.optimizer.register_step_post_hook(lambda *_: events.append("updated"))
    with Reads(events, monkeypatch):
        for _ in range(2):
            loop.train_step(run)
    assert events == ["updated", "tolist"] * 2
    run.tracker.close()


@pytest.mark.usefixtures("_plain_loss")
def test_an_evaluation_reads_once(run_config, monkeypatch):
    """Four batches, and asked before each of them whether to stop."""
    run, events = loop.setup(run_config(), resume=False), []
    with Reads(events, monkeypatch):
        loop.evaluate(run, may_stop=True)
    assert events == ["tolist"]
    run.tracker.close()


def test_this_test_sees_a_read(monkeypatch):
    events = []
    with Reads(events, monkeypatch):
        torch.ones(()).item()
        float(torch.ones(()))
        if torch.ones(()):
            torch.ones(2).cpu()
    assert len(events) == 4
