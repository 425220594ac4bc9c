"""The device that is measured: what it is, how long a call takes on it, and how much memory."""

import hashlib
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

import torch

from harmonic_gpt.errors import reason_of

CODE = ("harmonic_gpt", "benchmarks", "configs", "tests")
# Sequences of 1,024 tokens of a forward pass of GPT-2 small, by the memory of the device in GiB
MICRO_BATCHES = ((70, 32), (35, 16), (20, 8), (0, 4))


def facts(device: str) -> dict:
    """What every row carries of the machine: the device, the versions and the time."""
    row: dict = {"device": "cpu", "capability": None, "memory_gib": None}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        row = {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    row |= {name: _version(name) for name in ("torch", "triton", "transformers")}
    row |= {"cuda": torch.version.cuda, "driver": _driver() if device == "cuda" else None}
    return row | {"date": datetime.now(UTC).isoformat(timespec="milliseconds")}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip().partition("\n")[0] or None


def code_of(root: Path) -> dict:
    """The measured code: its commit (None for a copy that git does not know; "-dirty" if the code, not the results or
    the pages, differs from it) and a hash of the files themselves, by which a measurement is known to be done."""
    digest = hashlib.sha256()
    for path in sorted(file for folder in CODE for kind in ("*.py", "*.yaml") for file in (root / folder).rglob(kind)):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return {"commit": _commit(root), "code": digest.hexdigest()[:12]}


def _commit(root: Path) -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).relative_to(root)))  # not another project's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def micro_batch_size() -> int:
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return next(size for least, size in MICRO_BATCHES if memory >= least)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"


def seconds(function: Callable[[], object], device: str) -> float:
    """Seconds of a call; on a GPU between two events on its stream, after whatever was queued before."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(seconds of every round by contender, error by contender that failed).

    Each round calls every contender once, in a shuffled order; one round before these warms up. A contender that fails
    is left out from there on.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    order = list(contenders)
    for i in range(rounds + 1):
        random.Random(i).shuffle(order)
        for name in order:
            if name in errors:
                continue
            try:
                elapsed = seconds(contenders[name], device)
            except Exception as error:  # noqa: BLE001 - whatever a rival raises is its row, not the end of the others
                errors[name] = describe(error)
                continue
            if i:
                times[name].append(elapsed)
    return {name: values for name, values in times.items() if name not in errors}, errors


def spread(values: list[float]) -> dict:
    """Median in milliseconds and the quartiles around it."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"ms": median(values) * 1e3, "quartiles_ms": [low * 1e3, high * 1e3]}


def peak_bytes(function: Callable[[], object], device: str) -> int | None:
    """Bytes that a call needs at its peak beyond what is allocated before; None on the CPU."""
    if device == "cpu":
        function()
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
