import threading

import numpy as np
import pytest
import torch

from harmonic_gpt.errors import InputError
from harmonic_gpt.training import loop
from harmonic_gpt.training.prefetch import Prefetch

CPU = torch.device("cpu")


def batch(number: int) -> np.ndarray:
    return np.full((2, 3), number, np.int64)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_batch_is_read_by_another_thread_from_when_it_is_begun():
    read, second = [], threading.Event()

    def watched(number: int) -> np.ndarray:
        read.append((number, threading.current_thread() is threading.main_thread()))
        if number == 1:
            second.set()
        return batch(number)

    with Prefetch(watched, 2, CPU) as batches:
        assert read == []  # nothing before it is asked for
        assert torch.equal(batches[0], torch.zeros(2, 3, dtype=torch.int64))
        batches.begin(1)
        assert second.wait(60)
        assert torch.equal(batches[1], torch.ones(2, 3, dtype=torch.int64))
        batches.begin(2)  # there is none
    assert read == [(0, False), (1, False)]
    assert threads() == []


def test_any_order_gives_the_batch_that_was_asked_for():
    order = [4, 5, 5, 2, 9, 3, 4]
    for begun in (0, 1):  # another one than is asked for next, or that
        with Prefetch(batch, 10, CPU) as batches:
            for number in order:
                assert int(batches[number][0, 0]) == number
                batches.begin(number + begun)


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def broken(number: int) -> np.ndarray:
        if number == 1:
            raise InputError("train.bin has become shorter")
        return batch(number)

    with Prefetch(broken, 3, CPU) as batches:
        batches[0]
        batches.begin(1)
        with pytest.raises(InputError, match="become shorter"):
            batches[1]
    assert threads() == []


def test_for_cuda_a_batch_is_pinned_and_half_as_wide(monkeypatch):
    """With a fake: no GPU is asked."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert Prefetch(batch, 1, torch.device("cuda"))._load(7).dtype == torch.int32
    assert len(pinned) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_ends_with_the_run(run_config, fails):
    run = loop.setup(run_config(), resume=False)
    if fails:
        read = run.sampler.batch

        def broken(step: int, *place: int) -> np.ndarray:
            if step == 3:
                raise InputError("a token file is gone")
            return read(step, *place)

        run.sampler.batch = broken
        with pytest.raises(InputError, match="a token file is gone"):
            loop.fit(run)
        assert run.step == 3
    else:
        assert loop.fit(run) == 0
    assert threads() == []
