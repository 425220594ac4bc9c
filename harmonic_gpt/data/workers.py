"""Tokenizing in parallel: in threads at first, in processes of their own once there is text enough to pay for them."""

import errno
import os
import pickle
import queue
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from harmonic_gpt.data.encoding import Encoded, EncoderSpec, batch_encoder

# Characters. A process costs about half a second of a core before its first document; threads share one interpreter
PROCESSES_FROM = 32_000_000
# The parent's modules, but not its main program, which multiprocessing would run again
PROGRAM = "import sys; sys.path[:] = {path!r}; from harmonic_gpt.data.workers import serve; serve()"


class EncoderProcess:
    """A process that tokenizes one batch at a time. It ends when its pipe does, whatever this process ends by."""

    def __init__(self, spec: EncoderSpec, dtype: np.dtype):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            process_group=0,  # Ctrl-C is for the parent alone, which then closes the pipes; Windows has no groups
        )
        self._start: tuple | None = (spec, dtype)

    def encode(self, batch: dict[str, list[str]]) -> Encoded:
        """Raises ChildProcessError if the process has died, which the system may do to it when memory runs out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._start is not None:  # not before: until it reads, a pipe takes a few kilobytes
                pickle.dump(self._start, self._process.stdin, pickle.HIGHEST_PROTOCOL)
                self._start = None
            pickle.dump(batch, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise ChildProcessError(errno.ECHILD, f"a process that tokenizes ended with exit code {code}") from error

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # it is dead already, and part of a batch was not sent
                pipe.close()
        self._process.wait()


class Encoders:
    """Tokenizes batches, up to `count` at a time. A context manager: leaving it gives up what is not done.

    Processes are started when `processes_from` characters have come.
    """

    def __init__(self, spec: EncoderSpec, dtype: np.dtype, count: int, processes_from: int = PROCESSES_FROM):
        self._spec, self._dtype, self._count, self._processes_from = spec, dtype, count, processes_from
        self._encode_here = batch_encoder(spec, dtype)
        self._pool = ThreadPoolExecutor(count)
        self._processes: list[EncoderProcess] = []
        self._idle: queue.SimpleQueue[EncoderProcess] = queue.SimpleQueue()
        self._characters = 0

    def submit(self, batch: dict[str, list[str]]) -> "Future[Encoded]":
        self._characters += sum(len(text) for texts in batch.values() for text in texts)
        if not self._processes and self._characters >= self._processes_from and sys.executable:
            for _ in range(self._count):
                self._processes.append(EncoderProcess(self._spec, self._dtype))
                self._idle.put(self._processes[-1])
        return self._pool.submit(self._encode_elsewhere if self._processes else self._encode_here, batch)

    def _encode_elsewhere(self, batch: dict[str, list[str]]) -> Encoded:
        process = self._idle.get()  # there are as many as threads
        try:
            return process.encode(batch)
        finally:
            self._idle.put(process)

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


def serve() -> None:
    """What a process does: an encoder's description, then batches, come in; ids go out."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    try:
        encode_batch = batch_encoder(*pickle.load(requests))
        while True:
            pickle.dump(encode_batch(pickle.load(requests)), replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()
    except (EOFError, BrokenPipeError):  # the other side has ended, or wants no more
        os._exit(0)  # closing `replies` would try to send the rest
