"""The corpus builder on made-up packages; nothing is downloaded."""

import json
import random
import shutil

import corpus
import corpus_share
import pytest

from harmonic_gpt.data.split import content_hash, is_validation
from harmonic_gpt.errors import InputError

LONG = "A sentence that is long enough to count as a document. " * 5


@pytest.fixture
def packages(tmp_path):
    """Three packages as they lie unpacked: pages, a link to the folder of pages, sayings; and much that is not text."""
    files = {
        "anarchism/usr/share/doc/anarchism/html/b.html": f"<h1>Second</h1><p>{LONG}",
        "anarchism/usr/share/doc/anarchism/html/a.html": f"<h1>First</h1><p>{LONG}",
        "anarchism/usr/share/doc/anarchism/html/short.html": "<p>Too short.",
        "anarchism/usr/share/doc/anarchism/markdown/a.md": LONG,
        "anarchism/usr/share/doc/anarchism/changelog.html.gz": LONG,
        "debian-reference-en/usr/share/debian-reference/ch01.en.html": f"<p>Chapter &eacute;.</p><p>{LONG}</p>",
        "debian-reference-en/usr/share/doc/debian-reference-en/copyright": LONG,
        "fortunes/usr/share/games/fortunes/wisdom": f"{LONG}\n%\nshort\n%\nOf two lines\n{LONG}",
        "fortunes/usr/share/games/fortunes/wisdom.dat": LONG,
        "fortunes/usr/share/doc/fortunes/copyright": LONG,
    }
    paths = list(files)
    random.shuffle(paths)  # a folder lists its files in the order in which they came
    for name in paths:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(files[name])
    link = tmp_path / "debian-reference-en/usr/share/doc/debian-reference-en/docs"
    link.symlink_to("../../debian-reference")
    return {name: tmp_path / name for name in corpus.VERSIONS}


def test_html_becomes_text():
    page = """<html><head><title>A &amp; B</title><style>p { color: red }</style>
      <script>if (a < b) { document.write("<p>no</p>") }</script></head>
      <body><h1>Head</h1><p>One  \t two<br/>three <b>bo</b>ld &#233;<p>

      <ul><li>item</ul><!-- a comment --></body></html>"""
    assert corpus.text_of_html(page) == "A & B\n\nHead\nOne two\nthree bold é\n\nitem"


def test_documents_come_in_order_and_short_ones_are_left_out(packages):
    content, counts = corpus.build(packages)
    rows = [json.loads(line) for line in content.decode().splitlines()]
    assert [row["source"] for row in rows] == ["anarchism"] * 2 + ["debian-reference-en"] * 2 + ["fortunes"] * 2
    texts = [row["text"] for row in rows]
    assert [text.split()[0] for text in texts] == ["First", "Second", "Chapter", "Chapter", "A", "Of"]
    assert texts[2] == texts[3] == f"Chapter é.\n{LONG.strip()}"  # by the link, too
    assert counts["fortunes"] == (2, len(texts[4]) + len(texts[5]))


def test_the_corpus_is_written_with_what_it_is_made_of(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus, "fetch", lambda package, _: (packages[package], "1.0"))
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    corpus.write_corpus(first)
    printed = capsys.readouterr().out
    assert "anarchism 1.0: 2 documents" in printed
    assert "warning: docs/results were measured on other text (anarchism 15.3-3" in printed
    corpus.write_corpus(second)
    assert first.read_bytes() == second.read_bytes() == corpus.build(packages)[0]
    with pytest.raises(InputError, match=r"first\.jsonl exists"):
        corpus.write_corpus(first)


def test_what_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch):
    out = tmp_path / "prose.jsonl"
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        corpus.write_corpus(tmp_path / "none" / "prose.jsonl")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="apt-get is not on this machine"):
        corpus.write_corpus(out)
    monkeypatch.setattr(shutil, "which", lambda program: program)
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package anarchism' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(InputError, match=r"(?s)download anarchism.*Unable to locate package anarchism.*apt-get update"):
        corpus.write_corpus(out)
    assert not out.exists()


def test_a_share_of_the_corpus_keeps_the_validation_text():
    texts = [f"document {i}" for i in range(4000)]
    validation = {text for text in texts if is_validation(content_hash(text), corpus_share.VALIDATION_SHARE)}
    quarter, sixteenth = ({text for text in texts if corpus_share.keeps(text, fraction)} for fraction in (4, 16))
    assert validation < sixteenth < quarter
    assert len(sixteenth - validation) == pytest.approx(len(set(texts) - validation) / 16, rel=0.2)
