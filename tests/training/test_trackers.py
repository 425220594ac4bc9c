import json
import shutil
import sys

import pytest
from PIL import Image

from harmonic_gpt.__main__ import main
from harmonic_gpt.errors import InputError
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training.loop import train
from harmonic_gpt.training.trackers import attach, flat_config, trackers


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "loss_curves.png")
    (folder / "report.md").write_text("# Comparison\n")
    return folder


def go_back_to_step_3(run):
    """As if the run had been killed after step 6 with its last checkpoint at 3."""
    shutil.rmtree(run / "step-000006")
    (run / "latest").unlink()
    (run / "latest").symlink_to("step-000003")


def scalars(run_dir, tag):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return events.Tags(), {event.step: event.value for event in events.Scalars(tag)}


def test_tensorboard_has_every_step_once_after_a_resume(run_config, tmp_path, report):
    pytest.importorskip("tensorboard")
    overrides = {"tracking__tensorboard": True, "train__log_every": 1}
    settings = run_config(**overrides)
    assert train(settings) == 0
    run = tmp_path / "run"
    go_back_to_step_3(run)
    assert train(settings, resume=True) == 0
    losses = {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}
    tags, seen = scalars(run, "loss")
    assert seen == pytest.approx(losses, rel=1e-6)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert attach(run, report) == ["tensorboard"]
    tags, _ = scalars(run, "loss")
    assert "report/loss_curves" in tags["images"]


def test_wandb_keeps_its_run_over_resume_and_takes_the_report(run_config, tmp_path, report):
    pytest.importorskip("wandb")
    settings, run = run_config(tracking__wandb="offline"), tmp_path / "run"
    assert train(settings) == 0
    first = json.loads((run / "latest/state.json").read_text())["wandb_id"]
    go_back_to_step_3(run)
    assert train(settings, resume=True) == 0
    assert json.loads((run / "latest/state.json").read_text())["wandb_id"] == first
    assert attach(run, report) == ["wandb"]
    folders = sorted(path.name for path in (run / "wandb").glob("offline-run-*"))
    assert folders
    assert all(f"-{first}" in name for name in folders)  # wandb numbers those that start within a second
    assert list((run / "wandb").glob("offline-run-*/files/media/images/report/loss_curves*.png"))


def test_trackio(run_config, tmp_path, report):
    pytest.importorskip("trackio")
    assert train(run_config(tracking__trackio=True, tracking__project=f"test-{tmp_path.name}")) == 0
    assert attach(tmp_path / "run", report) == ["trackio"]
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(f"test-{tmp_path.name}", "run")
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses == pytest.approx(
        {row["step"]: row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row}
    )
    assert any("report/loss_curves" in row for row in rows)


def test_flat_config_is_what_every_tracker_can_store(run_config):
    flat = flat_config(run_config())
    assert flat["optim.lr"] == 3e-3
    assert flat["model.hidden_scale"] == "null"
    assert flat["optim.betas"] == "[0.9, 0.95]"
    assert all(isinstance(value, str | int | float) for value in flat.values())


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_missing_library_names_its_extra(run_config, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    config = run_config(**{f"tracking__{name}": "offline" if name == "wandb" else True})
    with pytest.raises(InputError, match=rf"tracking\.{name}: {name} is needed here .*harmonic-gpt\[{name}\]"):
        trackers(config, tmp_path)


def test_a_tracker_that_refuses_is_one_line(run_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr("wandb.init", lambda **_: (_ for _ in ()).throw(RuntimeError("api_key not configured\nmore")))
    with pytest.raises(InputError, match=r"wandb did not start: api_key not configured\. Log in"):
        train(run_config(tracking__wandb="online"))


def test_a_tracker_that_fails_does_not_lock_the_folder(run_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")

    def fail_late(**_):  # wandb makes its folder first
        (tmp_path / "run" / "wandb").mkdir()
        raise RuntimeError("no connection")

    monkeypatch.setattr("wandb.init", fail_late)
    with pytest.raises(InputError, match="no connection"):
        train(run_config(tracking__wandb="online"))
    assert (tmp_path / "run" / "wandb").is_dir()
    assert train(run_config(), resume=True) == 0


def test_attach_needs_a_tracked_run(run_config, tmp_path, report, capsys):
    assert train(run_config(train__steps=3)) == 0
    with pytest.raises(SystemExit) as stop:
        main(["attach", str(tmp_path / "run"), "--report", str(report)])
    assert stop.value.code == 2
    assert "logged to no tracker" in capsys.readouterr().err
