"""Snapshots, background writing, what is kept, and the push to the Hub while training goes on."""

import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from harmonic_gpt.errors import InputError
from harmonic_gpt.files import file_sha256
from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.training import loop, pushing, saving
from harmonic_gpt.training.pushing import Pusher
from harmonic_gpt.training.run_dir import lock_run_dir
from harmonic_gpt.training.tracking import SpikeDetector


def names(run_dir):
    return [path.name for path in ckpt.checkpoints(run_dir)]


def test_full_copy_does_not_move_with_the_original_and_keeps_ties():
    weight = torch.ones(3)
    state = {"a": weight, "b": weight[:], "c": [torch.zeros(2), 4, "x"], "d": weight[1:]}
    copy = saving.full_copy(state)
    weight += 1
    assert copy["a"].tolist() == copy["b"].tolist() == [1, 1, 1]
    assert copy["a"] is copy["b"]
    assert copy["d"].tolist() == [1, 1]
    assert copy["c"][1:] == [4, "x"]
    assert saving.full_copy(state, keep=False)["a"] is None


def test_a_background_save_is_of_its_own_step(run_config, tmp_path, monkeypatch):
    """The files are written while two more steps are done: what they hold is the state at the call."""
    gate, real = threading.Event(), ckpt.write_checkpoint

    def late(*arguments):
        assert gate.wait(60)
        return real(*arguments)

    run = loop.setup(run_config(checkpoint__every=100), resume=False)
    loop.train_step(run)
    before = {name: value.clone() for name, value in run.bare_model.state_dict().items()}
    moments = run.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    monkeypatch.setattr(ckpt, "write_checkpoint", late)
    path = loop.save(run, background=True)
    for _ in range(2):
        loop.train_step(run)
    assert not path.exists()
    gate.set()
    loop.finish_saving(run)
    assert ckpt.find_corruption(path) is None
    saved = type(run.bare_model).from_pretrained(path)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(ckpt.load_state(path / ckpt.OPTIMIZER)["state"][0]["exp_avg"], moments)
    assert ckpt.read_state(path)["step"] == 1
    run.tracker.close()


def test_a_background_save_that_fails_is_not_forgotten(run_config, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    run = loop.setup(run_config(), resume=False)
    monkeypatch.setattr(ckpt, "write_checkpoint", full)
    loop.save(run, background=True)
    with pytest.raises(OSError, match="disk full"):
        loop.finish_saving(run)
    loop.save(run, background=True)
    with pytest.raises(OSError, match="disk full"):
        loop.save(run, background=True)
    run.tracker.close()


@pytest.mark.parametrize("background", [True, False])
def test_what_is_kept(run_config, tmp_path, background):
    settings = {"train__steps": 7, "checkpoint__every": 1, "checkpoint__keep": 2, "checkpoint__keep_every": 3}
    loop.train(run_config(checkpoint__background=background, **settings))
    assert names(tmp_path / "run") == ["step-000003", "step-000006", "step-000007"]


def test_an_older_checkpoint_stays_until_the_new_one_reads_back(run_config, tmp_path, monkeypatch):
    run = loop.setup(run_config(checkpoint__keep=1), resume=False)
    loop.train_step(run)
    loop.save(run)
    loop.train_step(run)
    monkeypatch.setattr(ckpt, "find_corruption", lambda path: "a bad block")
    with pytest.raises(OSError, match="does not read back as it was written: a bad block"):
        loop.save(run)
    monkeypatch.undo()
    assert "step-000001" in names(tmp_path / "run")
    assert (tmp_path / "run" / "latest").resolve().name == "step-000001"
    run.tracker.close()


def test_a_checkpoint_alone_continues(run_config, tmp_path):
    """As it comes back from the Hub: no config.yaml, no metrics beside it."""
    loop.train(run_config(run_dir=tmp_path / "whole"))
    (tmp_path / "run").mkdir()
    (tmp_path / "whole" / "step-000003").rename(tmp_path / "run" / "step-000003")
    with pytest.raises(InputError, match="had another configuration"):
        loop.train(run_config(optim__lr=1e-4), resume=True)
    assert loop.train(run_config(), resume=True) == 0
    ours, theirs = (file_sha256(tmp_path / name / "latest/model.safetensors") for name in ("run", "whole"))
    assert ours == theirs


def test_a_frozen_module_stays_so_when_a_run_is_resumed(run_config, tmp_path):
    settings = {"optim__freeze": ["transformer.ln_f"], "optim__optimizer": "muon"}
    loop.train(run_config(run_dir=tmp_path / "whole", **settings))
    loop.train(run_config(**settings))
    shutil.rmtree(tmp_path / "run" / names(tmp_path / "run")[-1])
    loop.train(run_config(**settings), resume=True)
    ours, whole = (load_file(tmp_path / name / "latest/model.safetensors") for name in ("run", "whole"))
    assert (ours["transformer.ln_f.weight"] == 1).all()
    assert all(torch.equal(ours[name], value) for name, value in whole.items())


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(run_config, tmp_path):
    loop.train(run_config())
    metrics = (tmp_path / "run/metrics.jsonl").read_text()
    for checkpoint in (tmp_path / "run").glob("step-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(InputError, match="its checkpoints are gone"):
        loop.train(run_config(), resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == metrics


def test_a_folder_is_held_by_one(run_config, tmp_path):
    run_dir = tmp_path / "new" / "run"
    with (
        lock_run_dir(run_dir),
        pytest.raises(InputError, match="another process is training in"),
        lock_run_dir(run_dir),
    ):
        pass
    assert not run_dir.exists()  # it never became a run
    with lock_run_dir(run_dir):
        pass


def test_checkpoints_go_to_the_hub_as_branches(run_config, tmp_path, hub, capsys):
    push = {"checkpoint__push_to": "ann/tiny", "checkpoint__push_every": 2}
    assert loop.train(run_config(train__steps=5, checkpoint__every=1, **push)) == 0
    branches = hub.files["ann/tiny"]
    assert "step-000005" in branches  # the last one always; step-000002 or 4 unless the one before was still on its way
    assert {"model.safetensors", "optimizer.pt", "state.json", "rng-0.pt"} <= set(branches["step-000005"])
    assert branches["step-000005"]["optimizer.pt"] == (tmp_path / "run/step-000005/optimizer.pt").read_bytes()
    assert not {"step-000001", "step-000003"} & set(branches)
    assert hub.private["ann/tiny"]
    assert "step-000005 pushed: http" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 500, 0])
def test_a_push_that_fails_does_not_stop_the_run(run_config, tmp_path, hub, capsys, status):
    hub.fail("/preupload/", status)
    assert loop.train(run_config(checkpoint__push_to="ann/tiny")) == 0
    assert names(tmp_path / "run") == ["step-000003", "step-000006"]
    assert "warning: step-000006 was not pushed, training goes on" in capsys.readouterr().err


def test_one_push_at_a_time_and_its_folder_is_spared(run_config, tmp_path, monkeypatch):
    gate, said, pushed = threading.Event(), [], []

    def upload(path, repo, **_):
        assert gate.wait(60)
        pushed.append(sorted(p.name for p in path.iterdir()))
        return "address"

    monkeypatch.setattr(pushing, "upload_checkpoint", upload)
    run = loop.setup(run_config(checkpoint__keep=1, checkpoint__every=1), resume=False)
    run.pusher = Pusher("ann/tiny", True, said.append)
    for _ in range(3):
        loop.train_step(run)
        loop.save(run)
    assert names(tmp_path / "run") == ["step-000001", "step-000003"]
    gate.set()
    run.pusher.wait()
    assert "model.safetensors" in pushed[0]
    assert said == [
        "step-000002 is not pushed: step-000001 is still on its way to ann/tiny",
        "step-000003 is not pushed: step-000001 is still on its way to ann/tiny",
        "step-000001 pushed: address",
    ]
    loop.train_step(run)
    loop.save(run)
    run.pusher.wait()
    assert names(tmp_path / "run") == ["step-000004"]
    run.tracker.close()


def test_a_push_that_hangs_can_be_left(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(pushing, "upload_checkpoint", lambda *_, **__: gate.wait(60))
    pusher = Pusher("ann/tiny", True, print)
    pusher.offer(tmp_path / "step-000001")
    asked = []
    pusher.wait(give_up=lambda: asked.append(1) or len(asked) > 2)
    assert pusher.path is not None  # still on its way
    gate.set()
    pusher.wait()
    assert pusher.path is None


def test_a_run_that_ends_badly_still_finishes_its_save_before_it_lets_go(run_config, tmp_path, monkeypatch):
    raised, finished, real_write, real_step = threading.Event(), [], ckpt.write_checkpoint, loop.train_step

    def late(*arguments):
        assert raised.wait(60)
        path = real_write(*arguments)
        with pytest.raises(InputError, match="another process"), lock_run_dir(tmp_path / "run"):
            pass
        finished.append(path.name)
        return path

    def step(run):
        if run.step == 4:
            raised.set()
            raise InputError("a token file has changed")
        return real_step(run)

    monkeypatch.setattr(ckpt, "write_checkpoint", late)
    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(InputError, match="a token file has changed"):
        loop.train(run_config())
    assert finished == ["step-000003"]


def test_not_finite_is_said_also_when_saving_fails(run_config, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("disk full")

    real_step = loop.train_step

    def step(run):
        if run.step == 4:
            raise FloatingPointError("step 5: loss nan")
        return real_step(run)

    monkeypatch.setattr(ckpt, "write_checkpoint", full)
    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(FloatingPointError, match=r"step 5: loss nan\. Last good checkpoint: none yet"):
        loop.train(run_config())
    assert "warning: disk full" in capsys.readouterr().err


def test_skipped_steps_in_a_row_are_counted_over_a_resume(run_config, tmp_path):
    run = loop.setup(run_config(train__max_skipped_steps=2), resume=False)
    run.bare_model.transformer.wpe.weight.data.fill_(float("nan"))
    for _ in range(2):
        assert loop.train_step(run).skipped
    loop.save(run)
    run.tracker.close()
    again = loop.setup(run_config(train__max_skipped_steps=2), resume=True)
    with pytest.raises(FloatingPointError, match="step 3"):  # its weights are NaN
        loop.train_step(again)
    again.tracker.close()


def test_spikes():
    detector = SpikeDetector(window=20, deviations=6.0, least=0.2)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 0.05
    falling = [6 - 0.01 * i + noise[i].item() for i in range(200)]
    assert not any(detector.is_spike(loss) for loss in falling)
    assert detector.is_spike(5.5)
    assert detector.is_spike(5.5)  # a spike does not raise what is normal
    assert not detector.is_spike(4.1)
    assert not SpikeDetector().is_spike(100.0)  # nothing to compare with yet
