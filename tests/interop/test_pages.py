"""Every command and every ```python block of the pages is run, in their order, on tiny data, each in a fresh process.

`<!-- not run: REASON -->` in front of a block leaves it out. docs/how-to/clients.md has a test of its own,
test_clients.py.
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

PAGES = [
    "README.md",
    "docs/how-to/train.md",
    "docs/how-to/data.md",
    "docs/how-to/evaluate.md",
    "docs/how-to/publish.md",
    "docs/how-to/explorer.md",
    "docs/how-to/extend.md",
    "docs/how-to/heads.md",
    "docs/how-to/tools.md",
]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)```", re.DOTALL)
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
    start, *words = shlex.split(line, comments=True)
    assert start in ("python", "harmonic-gpt"), f"only our own program is run here, got {line!r}; mark it `not run`"
    if start == "harmonic-gpt":
        return words
    return [{"train.py": "train", "eval.py": "eval"}[words[0]], *words[1:]]


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


def blocks(page: str) -> list[tuple[str, str]]:
    found = [match for match in BLOCK.finditer((ROOT / page).read_text()) if not match["reason"]]
    return [(match["language"], match["text"]) for match in found]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page(page, trained, hub):
    if page == "docs/how-to/evaluate.md":
        pytest.importorskip("lm_eval")
    for language, text in blocks(page):
        is_command = language == "bash"
        for example in text.replace("\\\n", " ").splitlines() if is_command else [text]:
            if example.strip():
                in_fresh_process(example, trained, is_command=is_command, hub_url=hub.url)


@pytest.mark.slow
def test_examples_share_nothing_but_the_folder(tmp_path):
    in_fresh_process("import json; json.left_over = True; open('kept', 'w').close()", tmp_path, is_command=False)
    in_fresh_process(
        "import json, os; assert os.path.exists('kept') and not hasattr(json, 'left_over')", tmp_path, is_command=False
    )
    with pytest.raises(AssertionError, match="only here"):
        in_fresh_process("raise SystemExit('only here')", tmp_path, is_command=False)


def test_what_is_left_out_is_marked():
    text = "<!-- not run: needs a GPU -->\n```bash\nnvidia-smi\n```\nand\n```bash\npython eval.py\n```\n"
    assert [match["reason"] for match in BLOCK.finditer(text)] == ["needs a GPU", None]
    for page in PAGES:
        assert (ROOT / page).read_text().count("```bash") == sum(
            m["language"] == "bash" for m in BLOCK.finditer((ROOT / page).read_text())
        )
