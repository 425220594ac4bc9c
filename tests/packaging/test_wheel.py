"""The wheel holds the package and nothing else, and works with what it says it needs."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import harmonic_gpt
from tests.interop import environments
from tests.interop.environments import ROOT

# Without markdown-it-py, which rich needs
OF_EXTRAS = ["PIL", "datasets", "matplotlib", "scipy", "sklearn", "tiktoken", "triton", "wandb"]


def tracked(folder: str = ".") -> list[str]:
    """Files of the checkout that git knows or would add."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """`python -m build` of a copy of the checkout: the build leaves files beside what it builds."""
    folder = tmp_path_factory.mktemp("build")
    for name in tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that installs the wheel, its core dependencies and those of the extras that it is given, nothing else.
    It returns a function that runs harmonic-gpt there: (exit code, stdout and stderr)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def install(*extras: str):
        texts = project["dependencies"] + [t for extra in extras for t in project["optional-dependencies"][extra]]
        folder = tmp_path_factory.mktemp("-".join(["core", *extras]))
        environ = environments.clean_environ(folder / "home")
        python = environments.only(folder / "venv", *(Requirement(text).name for text in texts))
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
        # Away from the checkout, whose editable install would count as this version, installed already
        subprocess.run(pip, cwd=folder, env=environ, check=True, timeout=120)

        def run(*arguments: str | Path, program: str = "harmonic-gpt") -> tuple[int, str]:
            done = subprocess.run(
                [python.parent / program, *arguments], cwd=folder, env=environ,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
            )  # fmt: skip
            return done.returncode, done.stdout

        return run

    return install


@pytest.mark.slow
def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = [name for name in archive.namelist() if name.endswith(("/METADATA", "/licenses/LICENSE"))]
    assert names == {*tracked("harmonic_gpt"), *(f"harmonic_gpt/{name}" for name in tracked("configs"))}
    assert len(metadata) == 2
    assert wheel.name.split("-")[1] == harmonic_gpt.__version__


@pytest.mark.slow
def test_trains_and_evaluates_with_its_core_dependencies_and_compares_with_eval(
    installed, corpus, run_config, tmp_path
):
    run, data = tmp_path / "run", tmp_path / "data"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run_config(data__dir=data).model_dump(mode="json")))

    core = installed()
    code, text = core(
        "-c", f"import importlib.util as u; print([m for m in {OF_EXTRAS} if u.find_spec(m)])", program="python"
    )
    assert (code, text) == (0, "[]\n")
    assert core("--version") == (0, f"harmonic-gpt {harmonic_gpt.__version__}\n")
    for arguments in (
        ["prepare", "--source", corpus, "--out", data, "--vocab-size", "300", "--validation-share", "0.2"],
        ["train", "--config", config],
        ["eval", "perplexity", run, "--tokens", "500"],
    ):
        code, text = core(*arguments)
        assert code == 0, text
    code, text = core("train", "--config", "quickstart_harmonic", "--dry-run")
    assert code == 0, text
    assert json.loads((run / "latest" / "state.json").read_text())["step"] == 6

    code, text = installed("eval")("eval", "compare", run, "--tokens", "500", "--out", tmp_path / "report")
    assert code == 0, text
    assert (tmp_path / "report" / "report.html").is_file()
