"""What README and the results pages say is what the rows say; every number on these pages has a place to come from."""

import re
from pathlib import Path

import answers
import pytest
import report
import summary
import summary_pictures
from results import FrontierPoint

from tests.experiments.rows import row

README, RESULTS, ARCHIVE = summary.ROOT / "README.md", summary.FILES, summary.ROOT / "docs/archive"
PAGES = {  # page -> where else its numbers may stand
    RESULTS / "prediction.md": [ARCHIVE / "recipe_2026_11.md"],
    RESULTS / "reading.md": [ARCHIVE / "recipe_2026_11.md", ARCHIVE / "reading_2026_11.md"],
    RESULTS / "speed.md": [ARCHIVE / "speed_2026_11.md"],
    RESULTS / "index.md": [],
    RESULTS / "heads.md": [],
    RESULTS / "uses.md": [],
}
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
NO_ROWS = re.compile(r"<!-- no rows: [^>]+ -->\n\n(?:^\|.*\n)+", re.MULTILINE)
CODE = re.compile(r"^ {4}.*\n|`[^`\n]+`|\]\([^)]*\)", re.MULTILINE)
NUMBER = re.compile(r"(?<![\d.])\d+\.\d{2,}(?![\d.])")


def tables_without_source(text: str) -> list[str]:
    """Tables that hold a number, are made by no program, and do not say that they have no rows."""
    left = NO_ROWS.sub("", summary.PART.sub("", text))
    return [table for table in TABLE.findall(left) if re.search(r"\d\.\d", table)]


def numbers_from_nowhere(text: str, archive: str) -> list[str]:
    """Numbers in the prose, of two decimals or more, that stand in no table of the page or its archive."""
    known = NUMBER.findall("".join(match[0] for match in summary.PART.finditer(text)) + archive)
    known += NUMBER.findall("".join(NO_ROWS.findall(text)))
    prose = CODE.sub("", TABLE.sub("", summary.PART.sub("", text)))
    return [number for number in NUMBER.findall(prose) if number not in known]


@pytest.mark.parametrize("page", summary.pages(), ids=lambda page: page.name)
def test_the_pages_say_what_the_rows_say(page):
    text = page.read_text(encoding="utf-8")
    assert summary.with_parts(text) == text, "run python experiments/summary.py --write"


def test_every_part_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in summary.pages())
    assert {match["name"] for match in summary.PART.finditer(text)} == set(summary.PARTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_has_a_place_to_come_from(page):
    text = page.read_text(encoding="utf-8")
    assert not tables_without_source(text)
    assert not numbers_from_nowhere(text, "".join(other.read_text(encoding="utf-8") for other in PAGES[page]))


def test_the_numbers_of_the_studies_stand_in_their_claims():
    known = "".join(page.read_text(encoding="utf-8") for page in RESULTS.glob("studies_claims_*.md"))
    numbers = NUMBER.findall(CODE.sub("", (RESULTS / "studies.md").read_text(encoding="utf-8")))
    assert len(numbers) > 10
    assert [number for number in numbers if number not in NUMBER.findall(known)] == []


def test_a_number_that_was_typed_is_seen():
    assert len(tables_without_source("| a |\n|---|\n| 0.5 |\n\n<!-- no rows: why -->\n\n| b |\n|---|\n| 0.6 |\n")) == 1
    made = "<!-- step, made by experiments/summary.py -->\n| 0.25 |\n<!-- end of step -->\n"
    assert numbers_from_nowhere(f"{made}0.25 and 0.75, `0.85`\n    0.95\n", "") == ["0.75"]
    assert summary.with_parts(made) != made


def test_verdicts_follow_their_intervals(monkeypatch):
    lost = [(1, 5.1, 5.0), (2, 5.12, 5.01), (3, 5.09, 5.0)]
    assert report.difference(lost) == "+0.100 [+0.075, +0.125]"
    assert answers.ahead(lost) == "standard"
    assert answers.ahead([(seed, b, a) for seed, a, b in lost]) == "harmonic"
    assert answers.ahead([(1, 5.1, 5.0), (2, 5.0, 5.1)]) == "no difference shown"
    assert answers.ahead(lost[:1]) == "one seed: a hint, no result"
    rows = [
        row(arm, seed, 5 + gap * (1 + seed / 10))
        for arm, gap in (("standard", 0), ("quarter", 0.1))
        for seed in range(5)
    ]
    monkeypatch.setattr(answers, "rows_of", lambda name: tuple(rows))
    assert answers.told("P1") == "**r = 1/4**: behind at 2 x 64: +0.120 [+0.100, +0.140]"
    assert answers.told("P2") == ""
    assert answers.answers()[0].answer.startswith("No. ")
    assert answers.answers()[1].answer.startswith("Not measured.")


def test_pictures_are_drawn_from_few_rows(tmp_path: Path):
    row = {"question": "enough text", "size": "2x64", "head": "harmonic", "set": {}, "trial": {}}
    rows = [
        row | {"arm": arm, "seed": seed, "val_loss": 5 + seed / 10 + (arm == "sharp") * seed, "key": f"{arm} {seed}"}
        for arm in ("standard", "sharp")
        for seed in range(5)
    ]
    summary_pictures.draw_sizes(tmp_path / "sizes.png", rows)
    curves = [[[1000, 6.0], [2000, 5.9]]]
    drawn = {
        question: [summary_pictures.Curves("standard", "red", "o-", curves)] for question in summary_pictures.SCARCE
    }
    summary_pictures.draw_scarce(tmp_path / "scarce.png", drawn)
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    assert len(summary_pictures.plain_scarce_rows()) == 6


def test_the_frontier_has_a_color_for_each_r(tmp_path: Path):
    def point(r, n, loss):
        read = {"lens_agreement": 0.7, "label_distance": 0.8}
        return FrontierPoint(r, n, [{"val_loss": loss, "reading": read}], "yes", loss - 4.8)

    points = [point(1.0, 20.0, 5.1), point(1.0, 30.0, 5.0), point(0.25, 60.0, 4.9), point(None, None, 4.8)]
    summary_pictures.draw_frontier(tmp_path / "frontier.png", points)
    assert (tmp_path / "frontier.png").stat().st_size > 5000


def test_lens_agreement_is_drawn_for_the_fresh_seeds_alone(tmp_path: Path):
    path = tmp_path / "lens.png"
    row = {"question": "enough text", "size": "2x64", "arm": "standard"}
    read = {"reading": {"layers": {"context_agreement": [0.2, 0.4], "tuned_context_agreement": [0.3, 0.5]}}}
    ours = [row | read | {"arm": "quarter"}] * 3
    summary_pictures.draw_lens(path, [row, *[row | read | {"question": "certificate"}] * 3, *[row | read] * 2, *ours])
    assert not path.exists()  # three seeds make a panel
    summary_pictures.draw_lens(path, [row | read] * 3 + ours)
    assert path.stat().st_size > 5000
