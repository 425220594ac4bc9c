"""Batches that are read while the device works on the one before."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from torch import Tensor


class Prefetch:
    """`count` batches on a device, each read by a thread from the time when the caller says so: best when it is about
    to wait for the device, since a thread that reads slows down one that launches.

    Which batch comes is asked for by its number, so that the order of the data does not depend on the thread. For CUDA
    a batch lies in pinned memory, and its copy to the device is queued like any other work.

    Args:
        read: token ids (B, T) of a batch by its number, from 0. What it raises is raised where the batch is asked for.
    """

    def __init__(self, read: Callable[[int], np.ndarray], count: int, device: torch.device):
        self._read, self._count, self._device = read, count, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")  # starts when there is something to read
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def begin(self, number: int) -> None:
        """Start to read batch `number`, if there is one."""
        if number < self._count:
            self._ahead = number, self._thread.submit(self._load, number)

    def __getitem__(self, number: int) -> Tensor:
        """Batch `number`: (B, T) int64 on the device."""
        if self._ahead is None or self._ahead[0] != number:
            self._ahead = number, self._thread.submit(self._load, number)
        (_, batch), self._ahead = self._ahead, None
        return batch.result().to(self._device, non_blocking=True).long()

    def _load(self, number: int) -> Tensor:
        ids = torch.from_numpy(self._read(number).astype(np.int32))  # ids fit: half the bytes
        return ids.pin_memory() if self._device.type == "cuda" else ids

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
