"""Checkpoints to the Hub while training goes on. Whatever the network does, training does not notice."""

import threading
from collections.abc import Callable
from pathlib import Path

from harmonic_gpt.runs.hub import upload_checkpoint


class Pusher:
    """Uploads one checkpoint at a time in a thread, each to a branch named after it (step-N), and says how it went."""

    def __init__(self, repo: str, private: bool, say: Callable[[str], None]):
        self.repo, self.private, self.say = repo, private, say
        self.path: Path | None = None  # what is being uploaded: not to be pruned
        self._thread: threading.Thread | None = None

    def offer(self, path: Path) -> None:
        """Upload `path`, unless another upload is going on."""
        if self.path is not None:
            self.say(f"{path.name} is not pushed: {self.path.name} is still on its way to {self.repo}")
            return
        self.path = path
        self._thread = threading.Thread(target=self._push, args=(path,), daemon=True, name="push")
        self._thread.start()

    def _push(self, path: Path) -> None:
        try:
            address = upload_checkpoint(path, self.repo, revision=path.name, private=self.private)
            self.say(f"{path.name} pushed: {address}")
        except Exception as error:  # noqa: BLE001  the Hub, the network, a full disk: the run goes on
            self.say(f"warning: {path.name} was not pushed, training goes on: {error}")
        finally:
            self.path = None

    def wait(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Until the upload in progress has ended, well or not, or `give_up` says so: a network may hang for ever."""
        while self._thread is not None and self._thread.is_alive() and not give_up():
            self._thread.join(0.1)
