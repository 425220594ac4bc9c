"""Every variant of the Triton kernel goes through ptxas on a machine without a GPU. The interpreter of the other tests
checks no types and is green for kernels that no GPU compiler accepts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the triton extra is not installed")

COMPILER = Path(__file__).parents[2] / "benchmarks" / "kernels.py"
KERNELS = Path(__file__).parents[2] / "harmonic_gpt" / "model" / "harmonic_kernels.py"
# a thread: two programs of 256 threads fit on a multiprocessor; of the Lorentz distance one
MAX_REGISTERS = {"plain": 128, "flags": 128, "lorentz": 192}
MAX_STACK_BYTES = 32  # ptxas may keep a few numbers of a row there, outside the loops
# an element, in each pass over whole blocks: of the four heads, with options, of arcosh and its derivative
MAX_INSTRUCTIONS = {"plain": 26, "flags": 36, "lorentz": 112}


def compiled(grid: str, out: Path, source: Path = KERNELS) -> list[dict]:
    """Rows of benchmarks/kernels.py, in a process without the interpreter."""
    command = [sys.executable, str(COMPILER), "--grid", grid, "--source", str(source), "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return [json.loads(line) for line in out.read_text().splitlines()]


def faults(row: dict) -> list[str]:
    """What is wrong with one compiled variant."""
    if "error" in row:
        return [row["error"]]
    passes = 1 if row["kind"] == "loss" else 2
    kind = "lorentz" if "lorentz" in row["flags"] else "flags" if row["flags"] else "plain"
    found = []
    if row["registers"] > MAX_REGISTERS[kind]:
        found.append(f"{row['registers']} registers")
    if row["stack_bytes"] > MAX_STACK_BYTES:
        found.append(f"{row['stack_bytes']} B of stack")
    loops = [loop for loop in row["loops"] if any(name.startswith("LDG") for name in loop["accesses"])]
    if len(loops) < passes:
        found.append("loops not found")
    whole = [loop for loop in loops if all(name.endswith(".128") for name in loop["accesses"] if name[2] == "G")]
    # The other loop is over the last block, which is not whole, and runs once for each row
    if any(name.startswith(("LDL", "STL")) for loop in whole or loops for name in loop["accesses"]):
        found.append("local memory in a loop")
    if row["classes"] >= 4096:  # smaller: less than one block
        if len(whole) < passes:
            found.append("accesses of less than 16 bytes in the loops over whole blocks")
        found += [
            f"{loop['instructions_per_element']} instructions an element"
            for loop in whole
            if loop["instructions_per_element"] > MAX_INSTRUCTIONS[kind]
        ]
    return found


@pytest.mark.parametrize(("spilled", "classes", "expected"), [
    (None, 50257, []),
    ("whole", 50257, ["local memory in a loop"]),
    ("last", 50257, []),  # the last block, once for each row
    ("last", 1000, ["local memory in a loop"]),  # all there is
])  # fmt: skip
def test_local_memory_is_a_fault_where_it_is_read_again_and_again(spilled, classes, expected):
    loops = {"whole": {"LDG.E.128": 8}, "last": {"LDG.E": 32}}
    if classes < 4096:
        del loops["whole"]
    if spilled:
        loops[spilled] = loops[spilled] | {"LDL": 1}
    told = [{"accesses": accesses, "instructions_per_element": 20.0} for accesses in loops.values()]
    row = {"flags": [], "kind": "loss", "registers": 80, "stack_bytes": 0, "classes": classes, "loops": told}
    assert faults(row) == expected


@pytest.mark.parametrize("grid", ["fast", pytest.param("rest", marks=pytest.mark.slow)])
def test_compiles_without_spills(tmp_path, grid):
    rows = compiled(grid, tmp_path / "rows.jsonl")
    assert len(rows) == {"fast": 22, "rest": 144}[grid]
    bad = {
        tuple(row[key] for key in ("similarity", "normalization", "kind", "architecture", "classes"))
        + tuple(row["flags"]): faults(row)
        for row in rows
    }
    assert not {name: found for name, found in bad.items() if found}


@pytest.mark.parametrize(
    ("line", "mistake", "fault"),  # the slow ones: that the limits can fail
    [
        # What the interpreter once hid: a variable that changes its type in a loop
        ("        peak = 0.0\n", "        peak = n_classes > 0\n", "re-assigned"),
        pytest.param("NUM_WARPS = 8\n", "NUM_WARPS = 2\n", "registers", marks=pytest.mark.slow),
        pytest.param("u_row + columns, mask", "u_row + columns + 1, mask", "16 bytes", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_found(tmp_path, line, mistake, fault):
    text = KERNELS.read_text()
    assert line in text
    source = tmp_path / "kernels.py"
    source.write_text(text.replace(line, mistake))
    (row,) = compiled("one", tmp_path / "rows.jsonl", source)
    assert fault in " ".join(faults(row))
