"""tests/gpu by pytest, and the float32 loss under compute-sanitizer where that is installed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu import sanitized
from benchmarks.gpu.settings import ROOT, Settings

COLUMNS = {"passed": "", "n_failed": "", "failed": "", "skipped_tests": "", "tool": "", "skipped": ""}
SUITE = "tests/gpu"
TOOLS = ("memcheck", "racecheck")


def measurements(settings: Settings) -> dict[str, Callable[[], list[dict]]]:
    return {"pytest tests/gpu": partial(suite, settings)} | {
        f"compute-sanitizer {tool}": partial(sanitizer, settings, tool) for tool in TOOLS
    }


def suite(settings: Settings) -> list[dict]:
    """One row: how many tests passed, and which failed or were skipped, and why. Toy: the same tests on the CPU."""
    # Kernels are compiled for the device, not interpreted as in the other tests
    environment = os.environ | {"TRITON_INTERPRET": "0", "HARMONIC_GPT_GPU_TESTS": settings.device}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-m", "slow or not slow", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, SUITE]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(done.stdout)
        if not report.exists():
            reason = (done.stdout.strip() or "no output").splitlines()[-1]
            raise RuntimeError(f"pytest ended with exit code {done.returncode}: {reason}")
        row = outcomes(report)
    if done.returncode or not row["passed"]:
        row["error"] = f"{len(row['failed'])} failed, {row['passed']} passed (exit code {done.returncode})"
    return [row]


def outcomes(report: Path) -> dict:
    """Of a JUnit report: the number that passed, and the first line of why for each test that did not."""
    row: dict = {"passed": 0, "failed": {}, "skipped_tests": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        for kind, column in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped_tests")):
            if (found := case.find(kind)) is not None:
                row[column][name] = (found.get("message") or "").partition("\n")[0][:200]
                break
        else:
            row["passed"] += 1
    return row | {"n_failed": len(row["failed"])}


def sanitizer(settings: Settings, tool: str) -> list[dict]:
    """One row; an error if the tool finds one."""
    if settings.toy:
        sanitized.losses("cpu")
        return [{"tool": tool}]
    if shutil.which("compute-sanitizer") is None:
        return [{"tool": tool, "skipped": "compute-sanitizer is not installed"}]
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, sanitized.__file__]
    # Without torch's own pool, each tensor is an allocation whose bounds the tool knows
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180
    )
    row: dict = {"tool": tool, "report": done.stdout[-1500:]}
    return [row | ({"error": f"{tool}: exit code {done.returncode}"} if done.returncode else {})]
