"""pyproject.toml, requirements.txt and requirements.lock agree, and the lock leaves nothing open (else: `make lock`);
CHANGELOG.md and CITATION.cff are of the version that the package has."""

import pkgutil
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import harmonic_gpt

ROOT = Path(__file__).parents[2]


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_distribution() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks of each distribution, over all extras."""
    asked: dict[str, list[Requirement]] = {}
    for text in sum(project()["optional-dependencies"].values(), project()["dependencies"]):
        requirement = Requirement(text)
        asked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return asked


def pins(name: str) -> dict[str, set[str]]:
    """Versions that a file pins, by distribution; several where they depend on the platform."""
    found: dict[str, set[str]] = {}
    for requirement in requirements(name):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{name}: {requirement} is not a pin"
        found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


def test_the_lock_satisfies_pyproject():
    locked = pins("requirements.lock")
    for name, asked in by_distribution().items():
        if name == project()["name"]:  # the extra dev names the other extras
            continue
        assert name in locked, f"{name} is not in requirements.lock: make lock"
        for requirement in asked:
            assert all(version in requirement.specifier for version in locked[name]), (requirement, locked[name])


def test_the_lock_has_the_pins_of_requirements_txt():
    locked, listed, asked = pins("requirements.lock"), pins("requirements.txt"), by_distribution()
    for name, versions in listed.items():
        assert locked.get(name) == versions, f"{name}: make lock"
        assert name in asked, f"requirements.txt has {name}, which pyproject.toml does not ask for"
    core = {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]}
    assert not core - listed.keys(), "core dependencies that requirements.txt does not pin"


def test_the_lock_has_all_that_is_needed_in_turn():
    """Followed through the installed distributions; one that is not installed here is not followed."""
    locked = pins("requirements.lock")
    waiting, seen = list(by_distribution()), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or name == project()["name"]:
            continue
        seen.add(name)
        assert name in locked, f"{name} is needed and not in requirements.lock: make lock"
        try:
            texts = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        needed = map(Requirement, texts)
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(seen) > 50


def test_the_lock_is_for_any_machine():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"^\s*(-|--\S+)\s|://|/\w+/|--hash|\+cpu", text, re.MULTILINE)
    assert any("nvidia" in name for name in pins("requirements.lock")), "locked without CUDA's packages"


def test_the_new_names_of_the_changelog_exist():
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## [")[1]  # an older table is history
    rows = re.findall(r"^\| `[\w.]+` \| `([\w.]+)` \|$", newest, re.MULTILINE)
    assert len(rows) == newest.count("\n| `")
    for name in rows:
        pkgutil.resolve_name(f"harmonic_gpt.{name}")


def test_one_version_number():
    assert project()["dynamic"] == ["version"]
    assert "version" not in project()
    released = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released
    assert released.group(1) == harmonic_gpt.__version__
    assert f"\nversion: {harmonic_gpt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
