"""The first signal lets the step finish; a second Ctrl-C leaves at once, whatever the process is doing."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from harmonic_gpt.runs import checkpoint as ckpt
from harmonic_gpt.runs.metrics import read_metrics
from harmonic_gpt.training import loop, stopping
from tests.training.test_loop import assert_same_weights

BUSY = """
import hashlib, sys
from harmonic_gpt.training import stopping
stopping.SAME_WISH_SECONDS = -1
with stopping.stop_signals(lambda number: print("told", number, flush=True)):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, where no Python handler runs
"""


@pytest.mark.parametrize(
    ("signals", "leaves"),
    [
        ([(signal.SIGINT, 0.0)], False),
        ([(signal.SIGINT, 0.0), (signal.SIGINT, 0.5)], False),  # a launcher hands on what the terminal said already
        ([(signal.SIGINT, 0.0), (signal.SIGINT, 1.5)], True),
        ([(signal.SIGTERM, 0.0), (signal.SIGTERM, 9.0)], False),
        ([(signal.SIGTERM, 0.0), (signal.SIGINT, 9.0)], True),
        ([(signal.SIGUSR1, 0.0), (signal.SIGINT, 9.0)], False),
    ],
)
def test_which_signal_leaves(signals, leaves):
    ours, theirs = socket.socketpair()
    times = iter([time for number, time in signals if number != signal.SIGUSR1])
    left = []
    for number, _ in signals:
        ours.send(bytes([number]))
    ours.close()
    stopping._watch(theirs, leave=lambda: left.append(True), now=lambda: next(times))
    assert bool(left) == leaves


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    told = []
    with stopping.stop_signals(told.append):
        os.kill(os.getpid(), signal.SIGTERM)
    assert told == [signal.SIGTERM]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1
    for thread in threading.enumerate():
        if thread.name == "stop signals":
            thread.join(5)
            assert not thread.is_alive()


def test_a_second_interrupt_ends_a_process_that_is_in_c_code():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "busy\n"
        for _ in range(100):  # two signals that wait for delivery count as one
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 130
        assert "leaving at once; the last checkpoint is safe" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def interrupt(monkeypatch, function: str, when) -> None:
    """Ctrl-C on entering a function of the loop, the first time that `when` of its arguments is true."""
    real, told = getattr(loop, function), []

    def interrupted(*args, **kwargs):
        if not told and when(*args):
            told.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, function, interrupted)


@pytest.mark.parametrize("during", ["evaluation", "the step before it", "evaluation, and again when it is made up for"])
def test_an_evaluation_that_was_broken_off_is_made_up_for(run_config, tmp_path, monkeypatch, during):
    """The stopped and resumed run has the rows of one that was not stopped."""
    if during == "the step before it":
        interrupt(monkeypatch, "train_step", lambda run: run.step == 2)
    else:
        interrupt(monkeypatch, "block_nats", lambda *_: True)
    assert loop.train(run_config(checkpoint__every=100)) == 128 + signal.SIGINT
    if "again" in during:
        interrupt(monkeypatch, "block_nats", lambda *_: True)
        assert loop.train(run_config(checkpoint__every=100), resume=True) == 128 + signal.SIGINT
    assert [path.name for path in ckpt.checkpoints(tmp_path / "run")] == ["step-000003"]
    assert not [row for row in read_metrics(tmp_path / "run") if "val_loss" in row]
    assert loop.train(run_config(), resume=True) == 0
    loop.train(run_config(run_dir=tmp_path / "whole"))
    rows, expected = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "whole")
    for row in [*rows, *expected]:
        row.pop("tokens_per_second", None)
    assert rows == expected
    assert [row["step"] for row in rows if "val_loss" in row] == [3, 6]
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_the_last_evaluation_is_not_broken_off(run_config, tmp_path, monkeypatch):
    interrupt(monkeypatch, "block_nats", lambda *_: True)
    assert loop.train(run_config(eval__every=100)) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "val_loss" in row] == [6]
