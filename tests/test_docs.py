"""What every page must be: no placeholder left, no link to a file or heading that is not there."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDER = re.compile(r"@[A-Z]{2,}@")
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives the headings of a page (without the numbers that it appends to repeated headings)."""
    headings = HEADING.findall(CODE.sub(lambda match: match[0].replace("#", ""), text))  # a comment in code is no heading
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_is_finished(page):
    assert not PLACEHOLDER.findall(page.read_text(encoding="utf-8"))
    assert not broken_links(page)


def test_a_placeholder_is_seen():
    assert PLACEHOLDER.findall("The summary: @SUMMARY@.") == ["@SUMMARY@"]
    assert not PLACEHOLDER.findall("mail@EXAMPLE.org, `@pytest.mark`, user@A@b")


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "other.md").write_text("# The other: page\n")
    page = tmp_path / "page.md"
    page.write_text(
        "## Here\n[a](other.md) [b](other.md#the-other-page) [c](#here) [d](https://example.org) `[e](gone.md)`\n"
        "[f](gone.md) [g](other.md#gone) [h](#gone) ![i](gone.png)\n"
    )
    assert broken_links(page) == ["gone.md", "other.md#gone", "#gone", "gone.png"]


def test_quickstart_configs_differ_where_the_readme_says():
    """In the head and the run folder. The rate of the head is the same, and was the better one for both (docs/LOG.md)."""
    harmonic, standard = (yaml.safe_load((ROOT / f"configs/quickstart_{head}.yaml").read_text()) for head in ("harmonic", "standard"))
    flat = [
        {(section, name): value for section, values in config.items() if isinstance(values, dict) for name, value in values.items()}
        for config in (harmonic, standard)
    ]
    differing = {name for section, name in flat[0] | flat[1] if flat[0].get((section, name)) != flat[1].get((section, name))}
    assert differing == {"similarity", "normalization", "hidden_scale", "exponent"}
