"""What the package imports: nothing that only Unix has, nothing undeclared, and at the start only the core."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "harmonic_gpt"
# Reading, training, evaluating, and every verb up to its first line: they must import with the core dependencies
# alone, and on Windows and macOS
STARTS = [
    "harmonic_gpt.data.tokens", "harmonic_gpt.data.sampler", "harmonic_gpt.data.prepare", "harmonic_gpt.training.loop",
    "harmonic_gpt.evaluation.perplexity", "harmonic_gpt.runs.load", "harmonic_gpt.swap_head",
    *(f"harmonic_gpt.cli.{path.stem}" for path in sorted((PACKAGE / "cli").glob("[a-z]*.py"))),
]  # fmt: skip
UNIX_ONLY = ["fcntl", "grp", "pwd", "resource", "termios"]
# Import names that are not the distribution's
DISTRIBUTIONS = {
    "PIL": "pillow", "markdown_it": "markdown-it-py", "pydantic_core": "pydantic", "sklearn": "scikit-learn",
    "tiktoken_ext": "tiktoken", "umap": "umap-learn", "yaml": "pyyaml",
}  # fmt: skip
# Other libraries may import what is refused here, as they choose by the platform and by what is installed
IMPORT_WITHOUT = """
import builtins, importlib, sys

refused, starts = (argument.split(",") for argument in sys.argv[1:])
import_module = builtins.__import__

def without(name, globals=None, *rest, **named):
    if name.split(".")[0] in refused and (globals or {}).get("__name__", "").startswith("harmonic_gpt"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return import_module(name, globals, *rest, **named)

builtins.__import__ = without
for name in starts:
    importlib.import_module(name)
"""


def declared(*extras: str) -> set[str]:
    """Names of the distributions that the project requires, and that these extras require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def third_party(path: Path) -> set[str]:
    """Distributions that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules.add(node.module)
    names = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"harmonic_gpt"}
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names}


EXTRAS = ["eval", "explore", "studies", "data", "wandb", "tensorboard", "trackio", "lm-eval", "triton", "trl"]


def test_every_import_is_of_a_declared_dependency():
    known = declared(*EXTRAS)
    undeclared = {str(path): names for path in PACKAGE.rglob("*.py") if (names := third_party(path) - known)}
    assert not undeclared


def test_starts_without_extras_and_without_what_only_unix_has():
    beyond = declared(*EXTRAS) - declared()
    modules = [name.replace("-", "_") for name in beyond] + [m for m, name in DISTRIBUTIONS.items() if name in beyond]
    refused = ",".join([*UNIX_ONLY, *modules])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, refused, ",".join(STARTS)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
