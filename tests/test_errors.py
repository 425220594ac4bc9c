import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import harmonic_gpt
from harmonic_gpt.errors import is_out_of_memory, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "first"),
        (KeyError(), "KeyError"),
        (OSError("\n  indented\n"), "indented"),
    ],
)
def test_reason_of(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: np.empty(10**15)])
def test_what_the_allocators_raise_is_out_of_memory(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("size mismatch"), False),
        (OSError("out of memory"), False),  # a file of that name, say
    ],
)
def test_other_kinds(error, is_memory):
    assert is_out_of_memory(error) == is_memory


def test_no_error_hides_its_cause():
    for path in Path(harmonic_gpt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            hides = isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant)
            assert not hides, f"{path}:{node.lineno}: from None"
