"""Whose commit it is: ours only where the package lies at the top of a checkout that tracks it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harmonic_gpt.runs import provenance
from harmonic_gpt.runs.provenance import git_commit

IDENTITY = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def put_package(folder: Path) -> Path:
    """The package's skeleton in `folder`; returns the file that asks."""
    file = folder / "harmonic_gpt" / "runs" / "provenance.py"
    file.parent.mkdir(parents=True)
    shutil.copyfile(provenance.__file__, file)
    (folder / "harmonic_gpt" / "__init__.py").touch()
    return file


@pytest.fixture
def other(tmp_path):
    """Another project's repository, with a commit."""
    folder = tmp_path / "other"
    folder.mkdir()
    git(folder, "init")
    (folder / ".gitignore").write_text("/.venv/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "another project")
    return folder


def test_a_checkout_says_its_commit_and_whether_it_was_changed(other):
    file = put_package(other)
    git(other, "add", ".")
    git(other, "commit", "-m", "the package at the top")
    head = git(other, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    git(other, "tag", "v9")  # a tag is no commit
    assert git_commit(file) == head
    file.write_text("# changed\n")
    assert git_commit(file) == f"{head}-dirty"


def test_an_environment_inside_another_repository_has_no_commit(other):
    assert git_commit(put_package(other / ".venv" / "lib" / "python3.11" / "site-packages")) is None


def test_a_vendored_copy_has_no_commit(other):
    file = put_package(other / "third_party")
    git(other, "add", ".")
    git(other, "commit", "-m", "vendored")
    assert git_commit(file) is None


def test_an_untracked_copy_at_the_top_has_no_commit(other):
    assert git_commit(put_package(other)) is None


def test_no_repository_at_all(tmp_path):
    assert git_commit(put_package(tmp_path)) is None


def test_no_git(other, monkeypatch):
    file = put_package(other)
    monkeypatch.setenv("PATH", "")
    assert git_commit(file) is None


def test_this_checkout():
    here = Path(__file__)
    committed = ["git", "-C", here.parent, "cat-file", "-e", f"HEAD:./{here.name}"]
    if subprocess.run(committed, capture_output=True).returncode:
        pytest.skip("not a checkout")  # but an exported tree: in no repository, in one without commits, in another's
    assert git_commit(Path(provenance.__file__)).removesuffix("-dirty") == git(here.parent, "rev-parse", "HEAD")


def test_versions_are_recorded():
    assert set(provenance.provenance()["versions"]) == {"harmonic-gpt", *provenance.LIBRARIES}
