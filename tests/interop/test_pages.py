"""Every command and every ```python block of the pages is run, in their order, on tiny data, each in a fresh process.

`<!-- not run: REASON -->` in front of a block leaves it out; `<!-- continues -->` runs it in one process after the
Python block above it. docs/how-to/clients.md has a test of its own, test_clients.py. Results and archive name the
commands that made their numbers, which take hours.
"""

import multiprocessing
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from tests.hub_stand_in import TOKEN
from tests.interop import test_nanogpt
from tests.interop.environments import ROOT

PAGES = ["README.md", "docs/results/init_from.md"]
for chapter in ("tutorials", "how-to", "reference", "explanation"):
    PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs" / chapter).glob("*.md"))
PAGES = [page for page in PAGES if page not in ("docs/how-to/clients.md", "docs/tutorials/read_a_model.md")]
BLOCK = re.compile(
    r"(?:<!-- (?:not run: (?P<reason>.+?)|(?P<continues>continues)) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
TINY = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
    "optim": {"lr": 4e-3, "warmup_steps": 2},
    "train": {"steps": 12, "batch_tokens": 512, "log_every": 5},
}


@pytest.fixture(scope="module")
def place(token_folder, tmp_path_factory):
    """A folder with what the pages name, small: configs, data, the quickstart's runs, a nanoGPT checkpoint."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "configs").mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "pydocs").symlink_to(token_folder)
    (folder / "report").mkdir()
    state = test_nanogpt.weights()
    torch.save({"model": state, "model_args": test_nanogpt.ARGS, "iter_num": 7}, folder / "ckpt.pt")
    for head in ("harmonic", "standard", "heads"):
        name = f"quickstart_{head}.yaml"
        values = yaml.safe_load((ROOT / "configs" / name).read_text())
        for section, changes in TINY.items():
            values[section] |= changes
        values["data"] = {"dir": "data/pydocs"}
        (folder / "configs" / name).write_text(yaml.safe_dump(values))
    return folder


# Loaded once, by a server that a fresh process is forked from: a new Python each time would take minutes of imports
PRELOADED = ["torch", "transformers", "accelerate", "matplotlib", "harmonic_gpt.__main__", "harmonic_gpt.training.loop"]


def _example(text: str, is_command: bool, folder: Path, output: Path, hub_url: str | None) -> None:
    """One command of ours (`text` is its line) or block of Python, in the process that it was started for."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    os.environ["MPLBACKEND"] = "Agg"
    if hub_url is not None:
        import huggingface_hub.constants

        os.environ["HF_TOKEN"] = TOKEN
        huggingface_hub.constants.ENDPOINT = hub_url
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    if not is_command:
        exec(compile(text, "<example>", "exec"), {"__name__": "__main__"})
        return
    from harmonic_gpt.__main__ import main

    main(arguments(text))


def arguments(line: str) -> list[str]:
    """What follows the program's name in a command of ours."""
    start, *words = shlex.split(line)
    entry = {"train.py": "train", "eval.py": "eval"}
    if start == "harmonic-gpt":
        return words
    ours = start == "python" and words[0] in entry
    assert ours, f"only our own program is run here, got {line!r}; mark it `not run`"
    return [entry[words[0]], *words[1:]]


def in_fresh_process(text: str, folder: Path, *, is_command: bool, hub_url: str | None = None) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    output = folder / "output.txt"
    process = context.Process(target=_example, args=(text, is_command, folder, output, hub_url))
    process.start()
    process.join()
    assert process.exitcode == 0, text + "\n" + output.read_text(errors="replace")


@pytest.fixture(scope="module")
def trained(place):
    for head in ("harmonic", "standard"):
        in_fresh_process(f"python train.py --config configs/quickstart_{head}.yaml", place, is_command=True)
    compare = "python eval.py compare runs/quickstart-harmonic runs/quickstart-standard --out report/quickstart"
    in_fresh_process(compare, place, is_command=True)
    return place


def examples(page: str) -> list[tuple[bool, str]]:
    """What a page's blocks ask for, in their order: (a command?, its line or the block of Python)."""
    found: list[tuple[bool, str]] = []
    for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        text = match["text"]
        if match["reason"] or match["language"] not in ("bash", "python"):
            continue
        if match["language"] == "bash":
            lines = text.replace("\\\n", " ").splitlines()
            found += [(True, line) for line in lines if line.strip() and not line.startswith("#")]
        elif match["continues"]:
            before = [text for is_command, text in found if not is_command]
            found.append((False, before[-1] + text))
        else:
            found.append((False, text))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_page(page, trained, hub):
    if page == "docs/how-to/evaluate.md":
        pytest.importorskip("lm_eval")
    for is_command, text in examples(page):
        in_fresh_process(text, trained, is_command=is_command, hub_url=hub.url)


@pytest.mark.slow
def test_examples_share_nothing_but_the_folder(tmp_path):
    in_fresh_process("import json; json.left_over = True; open('kept', 'w').close()", tmp_path, is_command=False)
    in_fresh_process(
        "import json, os; assert os.path.exists('kept') and not hasattr(json, 'left_over')", tmp_path, is_command=False
    )
    with pytest.raises(AssertionError, match="only here"):
        in_fresh_process("raise SystemExit('only here')", tmp_path, is_command=False)


def hidden_blocks(text: str) -> list[str]:
    """Code that test_page does not see: indented by four spaces, fenced in a list, or in a language of no name."""
    outside = BLOCK.sub("", text)
    indented = re.findall(r"(?<=\n\n) {4,}\S.*", re.sub(r"^( *)[-*] (?:.+\n)(?:\n? +.+\n)*", "", outside, flags=re.M))
    languages = {"bash", "python", "console", "text", "yaml", "json"}
    unknown = [match["text"] for match in BLOCK.finditer(text) if match["language"] not in languages]
    return indented + re.findall(r"^ *```.*", outside, re.MULTILINE) + unknown


@pytest.mark.parametrize("page", [page for page in PAGES if "/results/" not in page])
def test_no_code_is_hidden(page):
    assert not hidden_blocks((ROOT / page).read_text(encoding="utf-8"))


def test_hidden_code_is_seen():
    seen = "<!-- not run: needs a GPU -->\n```bash\nnvidia-smi\n```\nand\n\n```text\n    printed\n```\n"
    seen += "\n- a list\n\n    of two\n"
    assert not hidden_blocks(seen)
    assert [match["reason"] for match in BLOCK.finditer(seen)] == ["needs a GPU", None]
    assert hidden_blocks("Run\n\n    python train.py\n") == ["    python train.py"]
    assert hidden_blocks("- a list\n  ```bash\n  python train.py\n  ```\n")
    assert hidden_blocks("```\npython train.py\n```\n") == ["python train.py\n"]


def test_a_block_continues_the_one_above(monkeypatch, tmp_path):
    monkeypatch.setattr("tests.interop.test_pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "```python\na = 1\n```\n```bash\n# a note\npython eval.py \\\n    sample\n```\n"
        "<!-- continues -->\n```python\nb = a\n```\n"
    )
    assert examples("page.md") == [(False, "a = 1\n"), (True, "python eval.py      sample"), (False, "a = 1\nb = a\n")]
