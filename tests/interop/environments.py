"""Virtual environments for tests of what happens elsewhere, made without downloading what is here already."""

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def clean_environ(home: Path) -> dict:
    """Environment variables of a process that must not see this checkout, nor the network, nor the user's Hugging Face
    files."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "WANDB", "VIRTUAL_ENV"))
    }
    return kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def only(folder: Path, *packages: str) -> Path:
    """A virtual environment with these packages and what they require, linked from ours, and nothing else. Returns its
    python."""
    venv.create(folder, symlinks=True)
    wanted, seen = list(packages), set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        installed = distribution(name)
        for text in installed.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for part in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            link = _site_packages(folder) / part
            if not link.exists():
                link.symlink_to(installed.locate_file(part))
    return folder / "bin" / "python"


def extended(folder: Path, *requirements: str, package: bool = False) -> Path | None:
    """A virtual environment that shares ours and adds packages from the registry, at the versions of requirements.lock
    where it has one. package: with harmonic_gpt of this checkout. None: the registry is out of reach."""
    venv.create(folder, symlinks=True)
    ours = sysconfig.get_paths()["purelib"]
    # Not recursive: what lies in .pth files there (this checkout's editable install) is not seen
    (_site_packages(folder) / "shared.pth").write_text(ours + "\n")
    if package:
        (_site_packages(folder) / "harmonic_gpt").symlink_to(ROOT / "harmonic_gpt")
    python = folder / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-compile",
        "--retries",
        "1",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*pip, "-c", str(ROOT / "requirements.lock"), *requirements],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    unreachable = (
        "NewConnectionError",
        "ConnectTimeout",
        "Temporary failure in name resolution",
        "No matching distribution found",
    )
    if done.returncode and any(text in done.stderr for text in unreachable):
        return None
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, script: str | Path, home: Path, *arguments: str, timeout: int = 120) -> str:
    """Run a script (text, or a file) away from this checkout; returns what it printed, or fails with its whole
    output."""
    home.mkdir(exist_ok=True, parents=True)
    done = subprocess.run(
        [python, *(["-c", script] if isinstance(script, str) else [script]), *arguments],
        cwd=home, env=clean_environ(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
