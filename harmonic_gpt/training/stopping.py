"""Stop signals: the first one lets the step finish and write a checkpoint; a second Ctrl-C leaves at once."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A launcher hands its own Ctrl-C on to the ranks, which the terminal has told already: both are one wish
SAME_WISH_SECONDS = 1.0


@contextmanager
def stop_signals(on_stop: Callable[[int], None]) -> Iterator[None]:
    """Call `on_stop(number)` for each SIGINT or SIGTERM, between two bytecodes of the main thread, as Python does.

    A step can spend minutes in one call into C++, where no Python handler runs. So a thread listens as well: at a
    SIGINT that comes after another stop signal it ends the process with exit code 130. Nothing is lost by that but the
    steps since the last checkpoint, which is whole or not there.
    """
    previous = {number: signal.signal(number, lambda n, _: on_stop(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wakeup = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(theirs,), daemon=True, name="stop signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        ours.close()  # ends the thread
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(signals: socket.socket, leave: Callable[[], None] | None = None, now=time.monotonic) -> None:
    first = None
    with signals:
        while received := signals.recv(1):
            number = received[0]
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if first is None:
                first = now()
            elif number == signal.SIGINT and now() - first > SAME_WISH_SECONDS:
                (leave or _leave)()


def _leave() -> None:
    print("\nleaving at once; the last checkpoint is safe, continue with --resume", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)
