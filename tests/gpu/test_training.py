"""Training on the GPU: what it must share with the CPU, with other precisions, and with itself after a stop."""

import pytest
import torch
from safetensors.torch import load_file

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import loop
from tests.conftest import HEADS

STANDARD = {"model__similarity": "dot", "model__normalization": "softmax"}
BF16_RTOL = 3e-3  # of a loss; on the CPU it is 8e-4 at most


def column(run_dir, name):
    return [row[name] for row in read_metrics(run_dir) if name in row]


@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradients_are_the_cpus(device, tiny_config, head):
    """float32, on a whole model."""
    models = [HarmonicGPT2ForCausalLM(tiny_config(similarity=head[0], normalization=head[1])).train()]
    models.append(HarmonicGPT2ForCausalLM(models[0].config).train())
    models[1].load_state_dict(models[0].state_dict())
    models[1].to(device)
    ids = torch.randint(101, (3, 24))
    losses = []
    for model in models:
        losses.append(model(input_ids=ids.to(model.device), labels=ids.to(model.device)).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-5, atol=0)
    parameters = dict(models[1].named_parameters())
    for name, expected in models[0].named_parameters():
        scale = expected.grad.abs().max().item()
        torch.testing.assert_close(parameters[name].grad.cpu(), expected.grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("head", [{}, STANDARD], ids=["harmonic", "standard"])
def test_bf16_follows_fp32(device, run_config, tmp_path, head, compiled):
    """Some steps of train.py, with a shorter last micro-batch (3 + 3 + 2 sequences)."""
    common = {"train__steps": 12, "train__micro_batch_size": 3, "eval__every": 6, **head}
    assert loop.train(run_config(run_dir=tmp_path / "fp32", **common)) == 0
    config = run_config(run_dir=tmp_path / "bf16", train__precision="bf16", train__compile=compiled, **common)
    run = loop.setup(config, resume=False)
    assert run.accelerator.device.type == device
    assert loop.fit(run) == 0
    fp32, bf16 = (column(tmp_path / name, "loss") for name in ("fp32", "bf16"))
    assert fp32[-1] < fp32[0] - 0.5  # it has learned: an update that is left out would show
    assert bf16 == pytest.approx(fp32, rel=BF16_RTOL)
    assert column(tmp_path / "bf16", "val_loss") == pytest.approx(column(tmp_path / "fp32", "val_loss"), rel=BF16_RTOL)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_exact(device, run_config, tmp_path, precision, optimizer):
    """6 steps in one go; 3, a checkpoint, and 3: the same losses and weights to the bit, with dropout. Sequences of
    several of attention's tiles, whose sums could come in any order."""
    options = {"model__dropout": 0.1, "train__precision": precision, "optim__optimizer": optimizer}
    options |= {"model__n_positions": 256, "train__batch_tokens": 1024, "train__micro_batch_size": 3}
    assert loop.train(run_config(run_dir=tmp_path / "whole", **options)) == 0
    config = run_config(run_dir=tmp_path / "parts", **options)
    run = loop.setup(config, resume=False)
    assert run.accelerator.device.type == device
    for _ in range(3):
        loop.train_step(run)
    loop.save(run)
    run.tracker.close()
    torch.manual_seed(99)  # whatever the process did before must not matter
    assert loop.train(config, resume=True) == 0
    assert column(tmp_path / "parts", "loss") == column(tmp_path / "whole", "loss")[3:]
    parts, whole = (load_file(tmp_path / name / "latest" / "model.safetensors") for name in ("parts", "whole"))
    for name, weight in whole.items():
        assert torch.equal(parts[name], weight), name


def test_a_checkpoint_of_the_gpu_is_read_on_the_cpu(device, run_config, tmp_path):
    assert loop.train(run_config()) == 0
    (newest, *_) = sorted(ckpt.checkpoints(tmp_path / "run"), reverse=True)
    assert ckpt.find_corruption(newest) is None
    loaded = load_model(str(tmp_path / "run"))
    model = loaded.model.cpu().eval()
    run = loop.setup(run_config(), resume=True)
    ids = torch.from_numpy(run.validation.read(0, 33))[None]
    losses = []
    with torch.no_grad():
        for trained in (model, run.bare_model.eval()):
            place = trained.device
            losses.append(trained(input_ids=ids[:, :-1].to(place), shift_labels=ids[:, 1:].to(place)).loss.cpu())
    run.tracker.close()
    assert run.bare_model.device.type == device
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
