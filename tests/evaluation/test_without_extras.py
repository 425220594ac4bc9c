"""Without scikit-learn, scipy, matplotlib and markdown-it: everything imports, models are trained and scored, and what
needs the libraries names the extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.extras import require

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, *arguments):
        if name.split(".")[0] in ("sklearn", "scipy", "matplotlib", "markdown_it"):
            return None  # as if it were not installed: torch and transformers look before they import
        return super().find_spec(name, *arguments)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
import harmonic_gpt.evaluation, harmonic_gpt.studies, harmonic_gpt.interop.export
import harmonic_gpt.runs.load, harmonic_gpt.training.loop
for package in (harmonic_gpt.evaluation, harmonic_gpt.studies):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.comparison.compare import compare
from harmonic_gpt.evaluation.interpretability import measure_interpretability
from harmonic_gpt.evaluation.lens import draw, lens
from harmonic_gpt.evaluation.perplexity import perplexity
from harmonic_gpt.evaluation.sample import sample
from harmonic_gpt.evaluation.tasks.word_pairs import load_tasks
from harmonic_gpt.evaluation.text import data_of
from harmonic_gpt.run_config import load_run_config
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.studies.digits import study
from harmonic_gpt.training.loop import train

run, out, config = sys.argv[1:]
assert train(load_run_config(config, [])) == 0
loaded = load_model(run)
text = data_of(loaded, None).tokens("val").read(0, 200)
assert perplexity(loaded.model, text, tokenizer=loaded.tokenizer).tokens == 199
assert sample(loaded, "The cat", max_new_tokens=4)
read = lens(loaded, "The cat")
assert measure_interpretability(loaded, load_tasks()).row["matrices"]["centers"]  # the matrices alone
for work, extra in (
    (lambda: compare([run], out), "eval"),
    (lambda: draw(read, out, "title"), "eval"),
    (lambda: measure_interpretability(loaded, load_tasks(), text, 1000), "eval"),
    (lambda: study(out, "digits", 2, 2), "studies"),
):
    try:
        work()
    except InputError as error:
        assert f"pip install 'harmonic-gpt[{extra}]'" in str(error), error
        assert isinstance(error.__cause__, ModuleNotFoundError)
    else:
        raise AssertionError(extra)
print("done")
"""


def test_what_works_without_the_extras_and_what_names_them(run_config, tmp_path):
    config = run_config(train__steps=3)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    arguments = (config.run_dir, tmp_path / "out", tmp_path / "config.yaml")
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    require("eval", "json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib is needed here .*pip install 'harmonic-gpt\[eval\]'") as caught:
        require("eval", "json", "matplotlib")
    assert isinstance(caught.value.__cause__, ImportError)
