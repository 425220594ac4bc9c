"""The corpus of the experiments: 14 million characters of English prose from three of Debian's packages.

    apt-get update                                # once, if apt's lists are old
    python experiments/corpus.py prose.jsonl

Downloads the packages with apt-get, unpacks them into a temporary folder (nothing is installed) and writes one JSON
object per document, {"source": package, "text": ...}. The same versions of the packages give the same bytes.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from harmonic_gpt.errors import InputError

# Of Debian 12. docs/results were measured on these, and this is the SHA-256 of what comes out
VERSIONS = {"anarchism": "15.3-3", "debian-reference-en": "2.100", "fortunes": "1:1.99.1-7.3"}
SHA256 = "9cdc1e70fb57a594fb0994d63d7d0ecf3b49543093048f25bfc32e097e8d817b"
MIN_CHARACTERS = 200  # of a document; shorter ones are left out
STARTS_A_LINE = frozenset({"br", "div", "h1", "h2", "h3", "h4", "li", "p", "pre", "tr"})
NOT_TEXT = frozenset({"script", "style"})


class _TextCollector(HTMLParser):
    def __init__(self):
        super().__init__()  # character references arrive as text
        self.pieces: list[str] = []
        self.open_not_text = 0

    def handle_starttag(self, tag, _attrs):
        if tag in STARTS_A_LINE:
            self.pieces.append("\n")
        elif tag in NOT_TEXT:
            self.open_not_text += 1

    def handle_endtag(self, tag):
        if tag in NOT_TEXT:
            self.open_not_text -= 1

    def handle_data(self, data):
        if self.open_not_text == 0:
            self.pieces.append(data)


def text_of_html(html: str) -> str:
    """The text of a page, without scripts and styles; a blank line at most between its lines."""
    collector = _TextCollector()
    collector.feed(html)
    text = re.sub("[ \t]+", " ", "".join(collector.pieces))
    return re.sub(r"\n\s*\n", "\n\n", text).strip()


def documents(package: str, root: Path) -> Iterator[str]:
    """Documents of a package that is unpacked under `root`, in the order of its files' names.

    debian-reference-en has a link to the folder of its pages, so each page comes twice. `prepare` drops the second; but
    it trains the tokenizer on both, and so were the tokenizers of docs/results.
    """
    if package == "fortunes":
        files = [path for path in (root / "usr/share/games/fortunes").iterdir() if "." not in path.name]
    else:
        walk = os.walk(root, followlinks=True)
        files = [Path(folder, name) for folder, _, names in walk for name in names if name.endswith(".html")]
    for path in sorted(files):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield from text.split("\n%\n") if package == "fortunes" else [text_of_html(text)]


def build(packages: dict[str, Path]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """JSON lines of all documents, from {package: where it is unpacked}; and {package: (documents, characters)}."""
    lines, counts = [], {}
    for package, root in packages.items():
        texts = [text for text in documents(package, root) if len(text) >= MIN_CHARACTERS]
        lines += [json.dumps({"source": package, "text": text}) + "\n" for text in texts]
        counts[package] = (len(texts), sum(map(len, texts)))
    return "".join(lines).encode(), counts


def _output_of(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise InputError(f"`{' '.join(map(str, command))}` failed: {said}\nDoes `apt-get update` help?")
    return done.stdout.strip()


def fetch(package: str, folder: Path) -> tuple[Path, str]:
    """Download a package and unpack it below `folder`: where to, and its version. Raises InputError."""
    _output_of(["apt-get", "-qq", "download", package], folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    _output_of(["dpkg-deb", "--extract", archive, folder / package], folder)
    return folder / package, _output_of(["dpkg-deb", "--field", archive, "Version"], folder)


def write_corpus(out: Path) -> None:
    """Build the corpus and write it to `out`; prints what it is made of. Raises InputError."""
    if out.exists():
        raise InputError(f"{out} exists; delete it or name another file")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it first")
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise InputError(
                f"{program} is not on this machine; the corpus is made of packages of Debian: build it there"
            )
    with tempfile.TemporaryDirectory() as folder:
        fetched = {package: fetch(package, Path(folder)) for package in VERSIONS}
        content, counts = build({package: root for package, (root, _) in fetched.items()})
    with out.open("xb") as file:
        file.write(content)
    for package, (count, characters) in counts.items():
        print(f"{package} {fetched[package][1]}: {count:,} documents, {characters:,} characters")
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    digest = hashlib.sha256(content).hexdigest()
    print(f"{out}: {totals[0]:,} documents, {totals[1]:,} characters, SHA-256 {digest}")
    if digest == SHA256:
        print("the text that docs/results were measured on")
    else:
        named = ", ".join(f"{package} {version}" for package, version in VERSIONS.items())
        print(f"warning: docs/results were measured on other text ({named}): expect losses to differ a little")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    try:
        write_corpus(parser.parse_args().out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
