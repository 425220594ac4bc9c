"""What every page must be: nothing left to fill in, and no link, file or import that is not there."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = ("docs/index.md", "docs/tutorials/read_a_model.md")  # of README and of the notebook, by `make docs`
PAGES = [page for page in PAGES if str(page.relative_to(ROOT)) not in MADE]
PLACEHOLDER = re.compile(r"@[A-Z]{2,}@")
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
FOLDERS = "benchmarks|configs|examples|experiments|harmonic_gpt|tests"
FILE = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/-]+\.(?:py|yaml|md)\b")
IMPORT = re.compile(r"^from (harmonic_gpt[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives the headings of a page (without the numbers that it appends to repeated headings)."""
    without_comments = CODE.sub(lambda match: match[0].replace("#", ""), text)  # a comment in code is no heading
    headings = HEADING.findall(without_comments)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of `page` whose file does not exist, or whose #heading is not in that file."""
    broken = []
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue  # http:, mailto:
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def missing_files(text: str) -> list[str]:
    """Files of the repository that a page names by their path from its root, and that do not exist."""
    return [name for name in FILE.findall(text) if not (ROOT / name).exists()]


def missing_names(text: str) -> list[str]:
    """What a page imports from the package, and the package does not have."""
    imports = [(module, name.strip()) for module, names in IMPORT.findall(text) for name in names.split(",")]
    return [f"{module}.{name}" for module, name in imports if not hasattr(import_module(module), name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_is_finished(page):
    text = page.read_text(encoding="utf-8")
    assert not PLACEHOLDER.findall(text)
    assert not broken_links(page)
    if page.name != "log.md":  # the log keeps the names of its day
        assert not missing_files(text)
        assert not missing_names(text)


def test_what_is_missing_is_seen(tmp_path):
    assert PLACEHOLDER.findall("The summary: @SUMMARY@.") == ["@SUMMARY@"]
    assert not PLACEHOLDER.findall("mail@EXAMPLE.org, `@pytest.mark`, user@A@b")
    assert missing_files("`tests/gone.py`, `tests/test_docs.py`, FOLDER/tests/other.py") == ["tests/gone.py"]
    assert missing_names("from harmonic_gpt.errors import InputError, Gone\n") == ["harmonic_gpt.errors.Gone"]
    (tmp_path / "other.md").write_text("# The other: page\n")
    page = tmp_path / "page.md"
    page.write_text(
        "## Here\n[a](other.md) [b](other.md#the-other-page) [c](#here) [d](https://example.org) `[e](gone.md)`\n"
        "[f](gone.md) [g](other.md#gone) [h](#gone) ![i](gone.png)\n"
    )
    assert broken_links(page) == ["gone.md", "other.md#gone", "#gone", "gone.png"]


@pytest.mark.parametrize(
    ("size", "other", "differing"),
    [
        ("quickstart", "standard", {"model.head", "model.exponent", "optim.weight_decay", "optim.eps"}),
        ("quickstart", "sharp", {"model.hidden_scale", "model.exponent", "optim.eps"}),
        ("gpt2_small", "sharp", {"model.hidden_scale", "model.exponent"}),
    ],
)
def test_configs_differ_from_the_harmonic_one_where_they_say(size, other, differing):
    settings = []
    for name in ("harmonic", other):
        config = yaml.safe_load((ROOT / f"configs/{size}_{name}.yaml").read_text(encoding="utf-8"))
        config.pop("run_dir")
        settings.append({f"{section}.{key}": values[key] for section, values in config.items() for key in values})
    assert {key for key in settings[0] | settings[1] if settings[0].get(key) != settings[1].get(key)} == differing


def unknown_messages(page: str, source: str) -> list[str]:
    """Code in the first cells of a page's tables of which no program text has all the fixed parts.

    `...` and words of capitals stand for what differs from case to case.
    """
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a text that goes on in the next line
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    fixed = {m: [part.strip() for part in re.split(r"\.\.\.|\b[A-Z]+\b", m)] for m in messages}
    return [message for message, parts in fixed.items() if not all(part in source for part in parts)]


def test_messages_of_the_troubleshooting_page_exist():
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "harmonic_gpt").rglob("*.py"))
    assert not unknown_messages(page.partition("## Start")[2], source)
    assert unknown_messages("| `OUT exists` | x |\n| `gone away` | y |\n", 'f"{out} exists"') == ["gone away"]


def test_pages_of_claims_are_those_of_the_committed_rows():
    for name, text in import_module("docs.make_study_pages").pages().items():
        assert (ROOT / "docs/results" / name).read_text(encoding="utf-8") == text, "run python docs/make_study_pages.py"


def test_every_measure_of_a_comparison_is_on_its_page_in_the_order_of_the_report():
    from harmonic_gpt.evaluation.comparison.arms import HEADLINES

    page = (ROOT / "docs/reference/measures.md").read_text(encoding="utf-8")
    ranked = page.partition("## Measures that rank")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", ranked, re.MULTILINE) == [headline.name for headline in HEADLINES.values()]
    for entry, headline in zip(ranked.split("\n### ")[1:], HEADLINES.values(), strict=True):
        assert "ontrol" in entry, headline.name
        side = "lower" if not headline.higher_is_better else "higher"
        assert f"{side} is better" in " ".join(entry.split()) or headline.name == "tuned lens"
