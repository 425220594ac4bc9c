"""The one exception that means "the input is wrong": entry points print it as one line and exit with code 2."""


class InputError(ValueError):
    """A mistake in what the user gave: says what was expected, what came, and the way out. Nothing has been written."""
