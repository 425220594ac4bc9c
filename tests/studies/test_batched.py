import numpy as np
import pytest
import torch

from harmonic_gpt.studies import batched
from harmonic_gpt.studies.batched import Cell, Member, run

# Of different sizes, so that members leave the program at different times
MEMBERS = (Member(0), Member(1, "paper"), Member(2, "clean", 0.3), Member(3, "clean", 0.8, 4.0))


def _cell(architecture="mlp", head="harmonic", members=MEMBERS, epochs=6, task="modular_addition", **changes):
    fields = {"learning_rate": 2e-3, "weight_decay": 1e-2, "stop_when_converged": False} | changes
    return Cell("test", task, architecture, head, members, epochs, **fields)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("mlp", "harmonic"),
        ("mlp", "standard"),
        ("transformer", "harmonic"),
        ("transformer", "standard"),
        ("mlp", "spherical"),
        ("mlp", "contrastive"),
    ],
)
def test_every_member_equals_its_single_run(architecture, head):
    together = run(_cell(architecture, head))
    for m, member in enumerate(MEMBERS):
        alone = run(_cell(architecture, head, members=(member,)))
        checks = alone.epochs.shape[1]
        np.testing.assert_allclose(together.embedding[m], alone.embedding[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.norm[m, :checks], alone.norm[0], rtol=1e-4)
        np.testing.assert_array_equal(together.epochs[m, :checks], alone.epochs[0])
        assert np.isnan(together.epochs[m, checks:]).all()
        assert together.test_accuracy[m] == pytest.approx(alone.test_accuracy[0], abs=0.02)  # an argmax may tip over


def test_a_member_equals_a_plain_training_loop(monkeypatch):
    """nn.Module, cross_entropy of -n log d, torch's AdamW, one batch after the other."""
    monkeypatch.setattr(batched, "EMBEDDING_REGULARISER", 0.01)
    member = Member(5)
    cell = _cell(members=(member,), epochs=3)
    program = batched._Program(cell)
    p = {k: v.detach()[0].double().requires_grad_() for k, v in program.p.items()}
    optimizer = torch.optim.AdamW(p.values(), lr=2e-3, weight_decay=1e-2)
    train, _ = batched.split(program.task, "clean", 0.8, 5)
    inputs, labels = torch.tensor(program.task.inputs[train]), torch.tensor(program.task.labels[train])
    generator = torch.Generator().manual_seed(2**31 + 5)
    for _ in range(3):
        for batch in torch.randperm(len(train), generator=generator).split(32):
            x = p["embedding"][inputs[batch]].flatten(1)
            x = torch.nn.functional.silu(x @ p["hidden.weight"] + p["hidden.bias"]) @ p["out.weight"] + p["out.bias"]
            loss = torch.nn.functional.cross_entropy(-2 * torch.cdist(x, p["embedding"]).log(), labels[batch])
            loss = loss + 0.01 * p["embedding"].square().mean(0).sqrt().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    steps = 3 * -(-len(train) // 32)
    program.train(steps)
    torch.testing.assert_close(program.p["embedding"][0].double(), p["embedding"], rtol=1e-3, atol=1e-4)


def test_easy_task_is_learned_and_stops_early(monkeypatch):
    monkeypatch.setattr(batched, "CONVERGED_EPOCHS", 10)
    result = run(_cell(members=(Member(0), Member(1)), task="in_context", epochs=200, stop_when_converged=True))
    assert result.reason == ["converged", "converged"]
    assert result.test_accuracy.min() > 0.99
    assert np.nanmax(result.epochs) < 120


def test_a_diverging_member_is_named_and_leaves_the_others_alone(monkeypatch):
    original = batched.networks.initial_parameters

    def spoiled(*arguments):
        parameters = original(*arguments)
        with torch.no_grad():
            parameters["embedding"][1, 0, 0] = float("nan")
        return parameters

    clean = run(_cell())
    monkeypatch.setattr(batched.networks, "initial_parameters", spoiled)
    result = run(_cell())
    assert result.reason == ["epochs", "diverged", "epochs", "epochs"]
    np.testing.assert_allclose(result.embedding[0], clean.embedding[0], rtol=1e-3, atol=1e-4)


def test_batches_are_epochs_without_repetition():
    stream = batched._Batches(70, torch.Generator().manual_seed(0))
    for _ in range(3):
        epoch = torch.cat([stream.take(1), stream.take(2)])
        assert sorted(epoch[epoch >= 0].tolist()) == list(range(70))
        assert (epoch[:2] >= 0).all()
