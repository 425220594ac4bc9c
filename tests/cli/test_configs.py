"""The configs that come with the program, by name; and the shell's completion."""

import os
import subprocess
import sys

import pytest

from harmonic_gpt.cli.configs import find_config, shipped_configs
from harmonic_gpt.errors import InputError
from harmonic_gpt.run_config import load_run_config
from tests.cli.test_main import HEAVY


def test_every_shipped_config_is_valid_and_found_by_its_name():
    shipped = shipped_configs()
    assert {"quickstart_harmonic", "quickstart_standard", "gpt2_small_harmonic"} <= shipped.keys()
    for name, path in shipped.items():
        assert find_config(name) == path
        load_run_config(path)


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart_harmonic").write_text("seed: 7\n")
    assert load_run_config(find_config("quickstart_harmonic")).seed == 7


@pytest.mark.parametrize(
    "name", ["quickstart-harmonic", "configs/quickstart_harmonic.yml", "quickstart_harmonics.yaml"]
)
def test_an_unknown_name_tells_the_nearest_and_all(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find_config(name)
    assert f"--config {name}: no such file" in str(caught.value)
    assert "did you mean --config quickstart_harmonic?" in str(caught.value)
    assert "gpt2_small_standard" in str(caught.value)


def test_a_plan_from_a_name(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("train", "--config", "quickstart_standard", "--dry-run")
    assert code == 0
    assert "quickstart-standard" in out
    assert cli("train", "--config", "quickstart")[0] == 2


# Lists the top packages that were imported, after what completion prints
COMPLETE = """
import atexit, sys
atexit.register(lambda: print("\\n" + " ".join({name.split(".")[0] for name in sys.modules})))
from harmonic_gpt.__main__ import main
main([])
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("harmonic-gpt tra", {"train"}),
        ("harmonic-gpt eval per", {"perplexity"}),
        ("harmonic-gpt prepare --validation-s", {"--validation-share"}),
        ("harmonic-gpt train --config gpt2_small_st", {"gpt2_small_standard", "gpt2_small_standard_paper"}),
    ],
)
def test_completion_is_light(words, completed):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = os.environ | {"_HARMONIC_GPT_COMPLETE": "complete_bash"} | asked
    ended = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, check=True
    )
    *lines, modules = ended.stdout.split("\n")[:-1]
    assert set(filter(None, lines)) == completed
    assert not HEAVY & set(modules.split())
