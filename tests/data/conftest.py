import numpy as np
import pytest

from harmonic_gpt.data.tokens import Tokens


@pytest.fixture
def line(tmp_path):
    """Tokens whose id is their position, over three files."""

    def make(n, files=3):
        paths = []
        for i, part in enumerate(np.array_split(np.arange(n, dtype="<u2"), files)):
            paths.append(tmp_path / f"{i}.bin")
            part.tofile(paths[-1])
        return Tokens(paths, np.dtype("<u2"), n)

    return make
