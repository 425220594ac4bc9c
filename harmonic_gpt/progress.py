"""How long work shows that it goes on: a bar on a terminal, a plain line a minute in a pipe or a file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

INTERVAL = 60  # seconds between lines


class Lines:
    """What is used of tqdm's interface, as lines on stderr: `checking tokens: 1,000 of 5,000 tokens`."""

    def __init__(self, iterable: Iterable | None, desc: str, unit: str, total: int | None):
        self.iterable, self.desc, self.unit, self.total = iterable, desc, unit, total
        self.n, self.due = 0, time.monotonic() + INTERVAL

    def update(self, n: int = 1) -> None:
        self.n += n
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + INTERVAL
            whole = "" if self.total is None else f" of {self.total:,}"
            print(f"{self.desc}: {self.n:,}{whole}{self.unit}", file=sys.stderr, flush=True)

    def __iter__(self) -> Iterator:
        for item in self.iterable or ():
            yield item
            self.update()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


def show_progress(
    iterable: Iterable | None = None, *, desc: str, unit: str = "", total: int | None = None, quiet: bool = False
) -> Any:
    """tqdm's bar, or lines where stderr is no terminal; to iterate over, or to `update` in a `with` block.

    Args:
        unit: of the count, with a space in front. total: default the length of `iterable`.
        quiet: show nothing.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if quiet or sys.stderr.isatty():
        return tqdm(iterable, desc=desc, unit=unit, total=total, unit_scale=True, leave=False, disable=quiet)
    return Lines(iterable, desc, unit, total)
