"""The examples of other people's tools, each in an environment with the tool from the registry."""

import re

import pytest

from tests.interop import environments

EXAMPLES = {
    "nnsight_trace.py": ["nnsight==0.8.1"],
    "sparsify_sae.py": ["eai-sparsify==1.3.3"],
    "transformerlens_hooks.py": ["transformer-lens==4.3.0"],
}


@pytest.fixture(scope="module")
def lines(exported, tmp_path_factory):
    """A function that runs an example on a trained model and returns what it printed."""

    def run(name: str) -> str:
        folder = tmp_path_factory.mktemp("tool")
        python = environments.extended(folder / "venv", *EXAMPLES[name])
        if python is None:
            pytest.skip("the package registry cannot be reached")
        return environments.run(
            python, environments.ROOT / "examples" / name, folder / "home", str(exported), str(folder / "out")
        )

    return run


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found.group(1))


@pytest.mark.slow
def test_nnsight(lines):
    text = lines("nnsight_trace.py")
    assert number(r"differ from transformers' by at most (\S+)", text) < 1e-5
    assert number(r"without the MLP of block 1: (\S+) nats", text) > 0.01


@pytest.mark.slow
def test_sparsify(lines):
    assert number(r"its encoder moved by (\S+)%", lines("sparsify_sae.py")) > 1


@pytest.mark.slow
def test_transformer_lens(lines):
    text = lines("transformerlens_hooks.py")
    assert number(r"log-probabilities differ from transformers' by at most (\S+)", text) < 1e-4
    assert number(r"hidden states after block 0 by (\S+)", text) < 1e-4
    assert number(r"without the MLP of block 1: (\S+) nats", text) > 0.01
    # The day this fails, the compatibility mode has learned to leave distance heads alone: change docs/how-to/tools.md
    assert number(r"are off by up to (\S+) nats", text) > 0.01
