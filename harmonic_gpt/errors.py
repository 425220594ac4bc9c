"""The exception that means "the input is wrong", and how its message names options and tells causes in a few words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_spelling: ContextVar[Callable[[str], str]] = ContextVar("spelling", default=str)


class InputError(ValueError):
    """A mistake in what the user gave: says what was expected, what came, and the way out. Nothing has been written.

    The command line prints it as one line and exits with code 2. Raise it `from` the error that showed the mistake:
    HARMONIC_GPT_TRACEBACK=1 prints both.
    """


def option(parameter: str) -> str:
    """A parameter of one of our functions as the user gives it: `vocab_size` in Python, `--vocab-size` on the command
    line, `data.vocab_size` in a config."""
    return _spelling.get()(parameter)


@contextmanager
def options_spelled(spelling: Callable[[str], str]) -> Iterator[None]:
    """Within it, `option` names parameters by `spelling`."""
    token = _spelling.set(spelling)
    try:
        yield
    finally:
        _spelling.reset(token)


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which is no mistake in the input. torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, RuntimeError):
        return "out of memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError)
