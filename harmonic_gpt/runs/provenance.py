"""What made a run: versions of the libraries, and the commit of this project."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from harmonic_gpt import __version__

LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


@cache
def provenance() -> dict:
    """Versions and commit that made a run: as they were when this process first asked."""
    versions = {"harmonic-gpt": __version__} | {name: version(name) for name in LIBRARIES}
    return {"versions": versions, "git_commit": git_commit(Path(__file__))}


def git_commit(file: Path) -> str | None:
    """The commit of the checkout whose top holds the package of `file`; None for an installed package.

    A virtual environment inside another project's repository must not pass that project's commit off as ours.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails for a file that the repository does not track
        if Path(git("rev-parse", "--show-toplevel")).resolve() != file.resolve().parents[2]:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
