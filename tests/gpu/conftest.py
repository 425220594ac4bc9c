"""Tests that need a CUDA device: `make gpu` runs them, or

    HARMONIC_GPT_GPU_TESTS=cuda python -m pytest tests/gpu -m "slow or not slow"

Without the variable no test sees a GPU. With HARMONIC_GPT_GPU_TESTS=cpu and TRITON_INTERPRET=0 those that take the
fixture `device` run on the CPU, without compiling: a check of the tests themselves.
"""

import os
from pathlib import Path

# Read when cuBLAS starts: without it its results may differ from run to run
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

DEVICE = os.environ.get("HARMONIC_GPT_GPU_TESTS", "cuda")


def _obstacle() -> str | None:
    if DEVICE == "cpu":
        return None
    if not torch.cuda.is_available():
        return "needs a CUDA device, and HARMONIC_GPT_GPU_TESTS=cuda"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton is set to interpret: run with TRITON_INTERPRET=0"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    obstacle = _obstacle()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if obstacle:
            item.add_marker(pytest.mark.skip(reason=obstacle))
        elif DEVICE == "cpu" and "device" not in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(autouse=True)
def _only_wiring_on_the_cpu():
    """Compiling for the CPU takes minutes and says nothing about the GPU."""
    with torch.compiler.set_stance("force_eager" if DEVICE == "cpu" else "default"):
        yield
        torch._dynamo.reset()


@pytest.fixture
def deterministic():
    """Kernels without atomic additions: equal runs are then equal to the bit. Not `warn_only`: with it attention's
    backward pass keeps its own."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
