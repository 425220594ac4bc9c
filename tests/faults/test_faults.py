"""Whatever happens, the last good checkpoint is intact, the run continues exactly, and no wrong result comes
silently."""

import io
import json
import os
import pickle
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save

from harmonic_gpt.files import file_sha256
from harmonic_gpt.runs import checkpoint as ckpt
from tests.faults.conftest import outcome

SAME = "continues to the very same losses and weights"


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_write(victims, config, undisturbed, tmp_path, record, every):
    run_dir = tmp_path / "whole"
    assert victims.train(config, run_dir, kill_at_write=10**9).code == 0
    writes = int((tmp_path / "whole.writes").read_text())
    assert writes > 60
    tried = range(1, writes + 1, every)
    for number in tried:
        run_dir = tmp_path / "run"
        ended = victims.train(config, run_dir, kill_at_write=number)
        assert ended.code == -signal.SIGKILL, ended.text
        good = [path for path in ckpt.checkpoints(run_dir) if ckpt.find_corruption(path) is None]
        assert good == ckpt.checkpoints(run_dir)  # a folder of that name is whole
        ended = victims.train(config, run_dir)
        assert ended.code == 0, (number, ended.text)
        assert outcome(run_dir) == undisturbed, number
        assert not list(run_dir.glob(".writing*"))
        shutil.rmtree(run_dir)
    record(
        f"SIGKILL before every {'' if every == 1 else 'ninth '}change of the file system (keep 1)",
        SAME,
        "as expected",
    )


def test_killed_at_steps_again_and_again(victims, config, undisturbed, tmp_path, record):
    run_dir = tmp_path / "run"
    for forward in (2, 7, 4, 5):  # of the steps that are left; odd ones are the first micro-batch of a step
        assert victims.train(config, run_dir, kill_at_forward=forward).code == -signal.SIGKILL
    assert victims.train(config, run_dir).code == 0
    assert outcome(run_dir) == undisturbed
    record("SIGKILL four times, between steps and within accumulation", SAME, "as expected")


def test_terminated_within_accumulation_and_again_while_saving(victims, config, undisturbed, tmp_path, record):
    run_dir = tmp_path / "run"
    ended = victims.train(config, run_dir, terminate_at_forward=6)
    assert ended.code == 128 + signal.SIGTERM, ended.text
    assert "stopped by SIGTERM after step 3" in ended.text
    assert ckpt.find_corruption(run_dir / "step-000003") is None
    assert victims.train(config, run_dir).code == 0
    assert outcome(run_dir) == undisturbed
    record(
        "SIGTERM within accumulation, another during the save",
        f"finishes the step, one checkpoint, code 143; {SAME}",
        "as expected",
    )


@pytest.fixture
def stopped(victims, config, tmp_path):
    """A run that stopped after step 5, with checkpoints of steps 2, 4 and 5."""
    run_dir = tmp_path / "stopped"
    assert victims.train(config, run_dir, "--checkpoint.keep=3", terminate_at_forward=10).code == 143
    assert [path.name for path in ckpt.checkpoints(run_dir)] == ["step-000002", "step-000004", "step-000005"]
    return run_dir


def damages():
    yield "truncated", lambda path: os.truncate(path, path.stat().st_size // 2)
    yield "emptied", lambda path: os.truncate(path, 0)

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)

    yield "one bit flipped", flip
    yield "removed", lambda path: path.unlink()


@pytest.mark.parametrize(("how", "damage"), list(damages()))
def test_damaged_files(victims, config, undisturbed, stopped, record, how, damage):
    newest = stopped / "step-000005"
    names = sorted(path.name for path in newest.iterdir())
    for name in names:
        kept = (newest / name).read_bytes()
        damage(newest / name)
        warnings = []
        assert ckpt.latest_checkpoint(stopped, warnings.append) == stopped / "step-000004", name
        assert len(warnings) == 1
        assert name in warnings[0] or name == ckpt.CHECKSUMS  # which then speaks of another file
        (newest / name).write_bytes(kept)
    damage(newest / "optimizer.pt")
    ended = victims.train(config, stopped)
    assert ended.code == 0, ended.text
    assert "step-000005 is damaged (optimizer.pt" in ended.text
    assert "resuming" in ended.text
    assert "step-000004 at step 4" in ended.text
    assert outcome(stopped) == undisturbed
    kept = stopped / "damaged-step-000005-0"
    assert (ckpt.find_corruption(kept) or "").startswith("optimizer.pt")  # neither pruned nor written over
    record(
        f"any one file of the newest checkpoint {how} (rng-0.pt too)",
        f"named, skipped, kept aside; the one before it {SAME}",
        "as expected",
    )


def forge(path, content):
    """Replace a file of a checkpoint (None: remove it), and its checksum too."""
    checksums = json.loads((path.parent / ckpt.CHECKSUMS).read_text())
    path.unlink()
    checksums.pop(path.name)
    if content is not None:
        path.write_bytes(content)
        checksums[path.name] = file_sha256(path)
    (path.parent / ckpt.CHECKSUMS).write_text(json.dumps(checksums))


def test_what_checksums_cannot_see(victims, config, stopped, record):
    """Checkpoints put together by hand. None of them is begun from, in part or as something that it is not."""
    checkpoint = stopped / "step-000005"
    weights = load_file(checkpoint / "model.safetensors")
    del weights["transformer.h.0.ln_1.weight"]
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    state["param_groups"][0]["params"].pop()
    optimizer = io.BytesIO()
    torch.save(state, optimizer)
    cases = [
        ("rng-0.pt", None, "rng-0.pt is missing"),
        (
            "model.safetensors",
            save(weights, {"format": "pt"}),
            "weights and config.json do not fit: transformer.h.0.ln_1.weight",
        ),
        ("optimizer.pt", optimizer.getvalue(), "optimizer or random state is not of this run"),
        ("config.json", b"[]", "its model cannot be loaded"),
        ("state.json", b"{}", "not the state of a training checkpoint"),
    ]
    for name, content, message in cases:
        kept = (checkpoint / name).read_bytes()
        forge(checkpoint / name, content)
        ended = victims.train(config, stopped)
        assert (ended.code, message in ended.text, "Traceback" in ended.text) == (2, True, False), (name, ended.text)
        (checkpoint / name).touch()
        checksums = json.loads((checkpoint / ckpt.CHECKSUMS).read_text())
        (checkpoint / ckpt.CHECKSUMS).write_text(json.dumps(checksums | {name: ""}))
        forge(checkpoint / name, kept)
    checkpoint.rename(stopped / "step-000010")
    ended = victims.train(config, stopped)
    assert ended.code == 2, ended.text
    assert "step-000010 holds step 5; give it back the name step-000005" in ended.text
    record(
        "rng-0.pt gone from folder and checksums; a weight left out, another optimizer, config.json or state.json of "
        "something else, with right checksums; a checkpoint renamed to another step",
        "refused in one line, code 2",
        "as expected",
    )


def test_a_pickle_that_would_run_code(victims, config, stopped, tmp_path, record):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "attacked"),))

    for name in ("optimizer.pt", "rng-0.pt"):
        path = stopped / "step-000005" / name
        kept = path.read_bytes()
        forge(path, pickle.dumps(Attack()))
        ended = victims.train(config, stopped)
        assert ended.code == 2, ended.text
        assert f"{name}: not what training writes" in ended.text
        assert "Traceback" not in ended.text
        assert not (tmp_path / "attacked").exists()
        forge(path, kept)
    record(
        "pickles that would run code in place of optimizer.pt and rng-0.pt, checksums right",
        "refused in one line, nothing run, code 2",
        "as expected",
    )


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("disk full while weights are written", {"largest_file": 60_000}),
        ("disk full while the optimizer is written", {"largest_file": 120_000}),
        ("run folder becomes read-only", {"read_only_at_forward": 3}),
    ],
)
def test_a_save_that_fails(victims, config, undisturbed, tmp_path, record, what, fault):
    run_dir = tmp_path / "run"
    assert victims.train(config, run_dir, "--checkpoint.background=false", kill_at_forward=6).code == -signal.SIGKILL
    assert [path.name for path in ckpt.checkpoints(run_dir)] == ["step-000002"]
    before = outcome(run_dir)[1]
    ended = victims.train(config, run_dir, **fault)
    os.chmod(run_dir, 0o755)
    assert ended.code == 4, ended.text
    assert "error: " in ended.text
    assert "Traceback" not in ended.text
    assert [path.name for path in ckpt.checkpoints(run_dir)] == ["step-000002"]  # the only one, with keep 1
    assert not list(run_dir.glob(".writing*/*"))  # a full disk is not left full
    assert outcome(run_dir)[1] == before
    assert victims.train(config, run_dir).code == 0
    assert outcome(run_dir) == undisturbed
    record(f"{what}, with keep 1", f"one line, code 4, the last checkpoint untouched; then {SAME}", "as expected")


def test_not_finite(victims, config, tmp_path, record):
    run_dir = tmp_path / "run"
    ended = victims.train(config, run_dir, nan_at_forward=9)
    assert ended.code == 3, ended.text
    assert "step 5: loss" in ended.text
    assert f"Last good checkpoint: {run_dir}/step-000004" in ended.text
    record(
        "gradient NaN in step 5", "the optimizer does not move; code 3, the last good checkpoint named", "as expected"
    )
    ended = victims.train(config, run_dir, "--train.max_skipped_steps=1", nan_at_forward=1)
    assert ended.code == 0, ended.text
    assert "warning: step 5: loss" in ended.text
    assert json.loads((run_dir / "latest/state.json").read_text())["skipped_steps"] == 1
    steps = [step for step, _ in outcome(run_dir)[0]]
    assert steps == [1, 2, 3, 4, 6]
    record(
        "the same with train.max_skipped_steps 1",
        "the step is skipped, said and counted; the run goes on",
        "as expected",
    )


def test_two_runs_in_one_folder(victims, config, undisturbed, tmp_path, record):
    run_dir = tmp_path / "run"
    os.mkfifo(f"{run_dir}.pipe")
    first = victims.begin(config, run_dir, wait_at_forward=5)
    pipe = os.open(f"{run_dir}.pipe", os.O_WRONLY)  # returns once the first run has reached step 3
    second = victims.train(config, run_dir)
    assert second.code == 2, second.text
    assert f"another process is training in {run_dir}" in second.text
    os.write(pipe, b"x")
    assert victims.end(first) == 0
    assert outcome(run_dir) == undisturbed
    record(
        "a second run started on the same folder",
        "refused in one line, code 2; the first is not disturbed",
        "as expected",
    )


def test_damaged_tokens(victims, config, token_folder, tmp_path, record):
    data = tmp_path / "data"
    shutil.copytree(token_folder, data)
    shard = next(data.glob("train-*.bin"))
    for how, message in (
        (flip_low_bit, "its SHA-256 is not the manifest's"),
        (cut_short, "the manifest says"),
    ):
        how(shard)
        ended = victims.train(config, tmp_path / "run", f"--data.dir={data}")
        assert ended.code == 2, ended.text
        assert shard.name in ended.text
        assert message in ended.text
        assert not (tmp_path / "run").exists()
    record(
        "a token file with one id changed to another, or cut short",
        "named in one line, code 2, nothing written",
        "as expected",
    )


def flip_low_bit(path):
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def cut_short(path):
    os.truncate(path, path.stat().st_size - 2)
