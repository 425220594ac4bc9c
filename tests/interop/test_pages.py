"""Every ```bash and ```python block of the pages is run, in their order, on tiny data.

`<!-- not run: REASON -->` in front of a block leaves it out.
"""

import re
import shlex

import matplotlib
import pytest
import torch
import yaml

from harmonic_gpt.__main__ import main
from tests.interop import test_nanogpt
from tests.interop.environments import ROOT

PAGES = [
    "README.md",
    "docs/train.md",
    "docs/data.md",
    "docs/evaluate.md",
    "docs/publish.md",
    "docs/explorer.md",
    "docs/notebook.md",
    "docs/extend.md",
    "docs/heads.md",
    "docs/tools.md",
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


@pytest.fixture(scope="module")
def trained(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for head in ("harmonic", "standard"):
            command(f"python train.py --config configs/quickstart_{head}.yaml")
        command("python eval.py compare runs/quickstart-harmonic runs/quickstart-standard --out report/quickstart")
    return place


def command(line: str) -> None:
    """A command of ours, in this process: a Python for each would take a minute of imports."""
    start, *arguments = shlex.split(line, comments=True)
    assert start in ("python", "harmonic-gpt"), f"only our own program is run here, got {line!r}; mark it `not run`"
    if start == "python":
        arguments[0] = {"train.py": "train", "eval.py": "eval"}[arguments[0]]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code, line


def blocks(page: str) -> list[tuple[str, str]]:
    found = [match for match in BLOCK.finditer((ROOT / page).read_text()) if not match["reason"]]
    return [(match["language"], match["text"]) for match in found]


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("page", PAGES)
def test_page(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    if page == "docs/evaluate.md":
        pytest.importorskip("lm_eval")
    if page == "docs/notebook.md":
        pytest.importorskip("pandas")
    matplotlib.use("Agg")
    namespace: dict = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), namespace)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip():
                    command(line)


def test_what_is_left_out_is_marked():
    text = "<!-- not run: needs a GPU -->\n```bash\nnvidia-smi\n```\nand\n```bash\npython eval.py\n```\n"
    assert [match["reason"] for match in BLOCK.finditer(text)] == ["needs a GPU", None]
    for page in PAGES:
        assert (ROOT / page).read_text().count("```bash") == sum(
            m["language"] == "bash" for m in BLOCK.finditer((ROOT / page).read_text())
        )
