import pytest

from harmonic_gpt.__main__ import main


@pytest.fixture
def cli(capsys):
    """Call the program in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call
