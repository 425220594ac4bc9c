"""The exception that means "the input is wrong", and how the cause of an error is told in a few words."""


class InputError(ValueError):
    """A mistake in what the user gave: says what was expected, what came, and the way out. Nothing has been written.

    The command line prints it as one line and exits with code 2. Raise it `from` the error that showed the mistake:
    HARMONIC_GPT_TRACEBACK=1 prints both.
    """


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which is no mistake in the input. torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, RuntimeError):
        return "out of memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError)
