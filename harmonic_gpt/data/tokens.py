"""Read token folders: what `prepare` wrote, datatrove's, or nanoGPT's.

Needs nothing of the writer, and runs on every system.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmonic_gpt.data.datatrove import document_ends, read_datatrove, token_files
from harmonic_gpt.data.manifest import MANIFEST, SPLITS, read_manifest
from harmonic_gpt.data.request import normalized
from harmonic_gpt.data.tokenizer import tokenizer_hash
from harmonic_gpt.errors import InputError, option
from harmonic_gpt.files import write_json
from harmonic_gpt.progress import show_progress

CHECK_TOKENS = 2**22
TURN, MAX_TURNS = 2**13, 2**10  # tokens of all sources together, where they take turns
VERIFIED = ".verified.json"  # file name: [bytes, mtime in ns, vocabulary, SHA-256] of what was found right
NANOGPT_VOCAB_SIZE = 50257  # nanoGPT's .bin files say nothing of themselves: uint16 ids of GPT-2's BPE


class Piece(NamedTuple):
    """So many tokens of a file, after those that are skipped."""

    path: Path
    skipped: int
    length: int


class Tokens:
    """One split of a token folder: a long line of ids over one or several files.

    A read opens the file, takes its window and closes it. A memory map would be a little shorter, but every page that
    it touched counts as resident memory: over an epoch, the whole corpus.
    """

    def __init__(self, files: list[Path], dtype: np.dtype, vocab_size: int, pieces: list[Piece] | None = None):
        """pieces: what the line is made of; default: each file whole."""
        self.files, self.dtype, self.vocab_size = files, dtype, vocab_size
        if pieces is None:
            pieces = [Piece(path, 0, path.stat().st_size // dtype.itemsize) for path in files]
        self._pieces = pieces
        self._starts = np.cumsum([0, *(piece.length for piece in self._pieces)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """ids[start : start + length] as int64. Raises InputError if one is outside the vocabulary."""
        parts = [part.astype(np.int64) for part in self.windows(start, length)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def windows(self, start: int, length: int) -> Iterator[np.ndarray]:
        """As `read`, in pieces that end where a file does, and as they are written."""
        end = min(start + length, len(self))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for i in range(first, len(self._pieces)):
            if start >= end:
                return
            path, skipped, _ = self._pieces[i]
            offset = skipped + start - int(self._starts[i])
            count = min(end, int(self._starts[i + 1])) - start
            part = np.fromfile(path, self.dtype, count, offset=offset * self.dtype.itemsize)
            if len(part) < count:
                raise InputError(f"{path} has become shorter since it was opened; prepare the folder again")
            if count and int(part.max()) >= self.vocab_size:
                place = int(np.argmax(part >= self.vocab_size))
                raise InputError(
                    f"{path}: token id {int(part[place])} at position {offset + place} is beyond the "
                    f"vocabulary of {self.vocab_size}; the file was made with another tokenizer, or is damaged"
                )
            yield part
            start += count

    def pieces(self, start: int, end: int) -> list[Piece]:
        """What ids[start : end] are made of."""
        found = []
        for piece, first in zip(self._pieces, self._starts.tolist(), strict=False):
            inside = max(start, first), min(end, first + piece.length)
            if inside[0] < inside[1]:
                found.append(Piece(piece.path, piece.skipped + inside[0] - first, inside[1] - inside[0]))
        return found

    def check(self, sha256: list[str], ends: np.ndarray | None = None, end_of_text: int = -1) -> None:
        """Read all of it. Raises InputError if an id is outside the vocabulary, with file and position, or a file is
        not as it was written.

        Args:
            sha256: of the files, in their order; an empty list where they are not known.
            ends: where documents end, (documents,) int64, counted from the start of the split: there, and only there,
                stands `end_of_text`. None where that is not known.
        """
        if self.vocab_size > np.iinfo(self.dtype).max and not sha256 and ends is None:
            return  # every id is in the vocabulary
        hashes, place = [hashlib.sha256() for _ in sha256], 0
        with show_progress(desc="checking tokens", total=len(self), unit=" tokens", quiet=len(self) <= 10**9) as bar:
            for start in range(0, len(self), CHECK_TOKENS):
                for window in self.windows(start, CHECK_TOKENS):
                    if hashes:
                        hashes[int(np.searchsorted(self._starts, place, side="right")) - 1].update(window.data)
                    if ends is not None:
                        self._check_ends(np.flatnonzero(window == end_of_text) + place + 1, ends, place, len(window))
                    place += len(window)
                    bar.update(len(window))
        for file, computed, expected in zip(self.files, hashes, sha256, strict=bool(sha256)):
            if computed.hexdigest() != expected:
                raise InputError(f"{file}: its SHA-256 is not the manifest's; it is damaged: prepare the folder again")

    def _check_ends(self, there: np.ndarray, ends: np.ndarray, place: int, length: int) -> None:
        """Raises InputError unless the documents that end in a window are those that `ends` says."""
        said = ends[slice(*np.searchsorted(ends, [place, place + length], side="right"))]
        differing = np.setxor1d(there, said, assume_unique=True)
        if len(differing):
            first = int(differing[0]) - 1
            number = int(np.searchsorted(self._starts, first, side="right")) - 1
            what = "no end-of-text" if first + 1 in said else "an end-of-text inside a document"
            raise InputError(f"{self.files[number]}: {what} at position {first - int(self._starts[number])}")


@dataclass
class TokenFolder:
    """A folder of token files. `manifest` is None for nanoGPT's headless ones."""

    path: Path
    vocab_size: int
    splits: dict[str, Tokens]
    manifest: dict | None
    vocabulary_note: str = ""  # how the vocabulary is known where no manifest says
    _verified: set[str] = field(default_factory=set)

    @property
    def tokenizer_path(self) -> Path | None:
        path = self.path / "tokenizer"
        return path if path.is_dir() else None

    @property
    def has_checksums(self) -> bool:
        """Whether the manifest has the files' SHA-256; datatrove's files have an index instead."""
        splits = self.manifest["splits"].values() if self.manifest else ()
        return any(file["sha256"] is not None for split in splits for file in split["files"])

    def unverified_tokens(self, split: str) -> Tokens:
        """A split as its files are. Raises InputError if the folder has no such split."""
        if split not in self.splits:
            raise InputError(f"{self.path}: no {split} tokens; it has {', '.join(self.splits)}")
        return self.splits[split]

    def tokens(self, split: str) -> Tokens:
        """A split, verified the first time that it is taken."""
        tokens = self.unverified_tokens(split)
        if split not in self._verified:
            self.verify(split)
        return tokens

    def verify(self, split: str, anew: bool = False) -> None:
        """Read a split: its ids must be of the vocabulary, its files those of the manifest. About a second a GB.

        What was found right is noted in the folder and not read again until a file's size or time changes, or with
        `anew`. Raises InputError.
        """
        tokens = self.unverified_tokens(split)
        files = self.manifest["splits"][split]["files"] if self.manifest else []
        identities: list[str | None] = [_identity(file) for file in files]
        identities = identities or [None] * len(tokens.files)
        note = {}
        for file, identity in zip(tokens.files, identities, strict=True):
            status = file.stat()
            name = file.relative_to(self.path).as_posix()
            note[name] = [status.st_size, status.st_mtime_ns, self.vocab_size, identity]
        known = _read_notes(self.path / VERIFIED)
        if anew or any(known.get(name) != value for name, value in note.items()):
            if self.manifest and not self.has_checksums:
                tokens.check([], document_ends(tokens.files), self.manifest["end_of_text"])
            else:
                tokens.check([file["sha256"] for file in files])
            with contextlib.suppress(OSError):  # a folder that cannot be written is read at every start
                write_json(self.path / VERIFIED, known | note)
        self._verified.add(split)

    def trust(self) -> None:
        """Take the files as they are: another process of this machine has verified them."""
        self._verified.update(self.splits)

    def sources(self, split: str) -> dict[str, Tokens]:
        """The split's tokens by source. Empty for nanoGPT's files, which do not say."""
        tokens = self.tokens(split)
        if self.manifest is None:
            return {}
        files: dict[str, list[Path]] = {}
        for path, file in zip(tokens.files, self.manifest["splits"][split]["files"], strict=True):
            files.setdefault(file["source"], []).append(path)
        return {name: Tokens(paths, tokens.dtype, tokens.vocab_size) for name, paths in files.items()}

    def leading(self, split: str, count: int) -> Tokens:
        """At most `count` tokens of a split: the leading ones of every source, as many as is its share of the split.

        Files lie source after source, so the first tokens of a split would be of its first source alone. Here the
        sources take turns, so that any part of some size has all of them.
        """
        tokens = self.tokens(split)
        taken, sources = min(count, len(tokens)), [*self.sources(split).values()]
        if len(sources) < 2:
            return Tokens(tokens.files, tokens.dtype, tokens.vocab_size, tokens.pieces(0, taken))
        ends = [end * taken // len(tokens) for end in itertools.accumulate(map(len, sources))]
        shares = [end - start for start, end in itertools.pairwise([0, *ends])]
        turns = min(MAX_TURNS, -(-taken // TURN))
        pieces = [
            piece
            for turn in range(turns)
            for source, share in zip(sources, shares, strict=True)
            for piece in source.pieces(share * turn // turns, share * (turn + 1) // turns)
        ]
        return Tokens(tokens.files, tokens.dtype, tokens.vocab_size, pieces)

    def fingerprint(self) -> dict:
        """What identifies the contents, wherever the folder lies: hashes of the files, or sizes where there is no
        manifest."""
        if self.manifest is None:
            sizes = {name: [path.stat().st_size for path in tokens.files] for name, tokens in self.splits.items()}
            return {"vocab_size": self.vocab_size, "tokenizer": None, "files": sizes}
        files = {name: [_identity(file) for file in split["files"]] for name, split in self.manifest["splits"].items()}
        return {"vocab_size": self.vocab_size, "tokenizer": self.manifest["tokenizer"]["sha256"], "files": files}

    def check_request(self, request: dict) -> None:
        """Raises InputError unless `prepare` was asked for just this. A request without a source is for the folder as
        it is: only a vocabulary of another size is refused."""
        if self.manifest is None:
            return
        made = normalized(self.manifest["request"])
        if request["source"] is None:
            size = request["vocab_size"]
            # The folder's own size, or the one that was asked for: a small text gives fewer tokens
            if size not in (None, self.vocab_size, made.get("vocab_size")):
                raise InputError(
                    f"{self.path} has a vocabulary of {self.vocab_size} tokens, {option('vocab_size')} asks for "
                    f"{size}; leave it out, or choose another data.dir"
                )
            return
        asked = normalized(request)
        differing = [key for key, value in asked.items() if made.get(key) != value]
        if differing:
            told = "; ".join(f"{option(key)}: {made.get(key)!r} there, {asked[key]!r} asked for" for key in differing)
            raise InputError(
                f"{self.path} was prepared from something else ({told}); choose another data.dir, or remove that folder"
            )

    def check_tokenizer(self, tokenizer) -> None:
        """Raises InputError unless this tokenizer can have made these files (nanoGPT's do not say which one did)."""
        if self.manifest is None:
            if len(tokenizer) > self.vocab_size:
                raise InputError(
                    f"the tokenizer has {len(tokenizer)} tokens, the vocabulary of {self.path} only {self.vocab_size}"
                )
            return
        made, given = self.manifest["tokenizer"], tokenizer_hash(tokenizer)
        if made["sha256"] != given:
            raise InputError(
                f"{self.path} was made with the tokenizer {made['name']!r} ({made['sha256'][:12]}), not with this one "
                f"({given[:12]}): ids would mean other tokens"
            )


def open_token_folder(path: str | Path, vocab_size: int | None = None) -> TokenFolder:
    """Open what `prepare` or datatrove wrote, or a folder with nanoGPT's train.bin and val.bin.

    Args:
        vocab_size: of nanoGPT's files, which do not say. Default: GPT-2's 50257; but one more than the largest id where
            nanoGPT's data are not GPT-2's tokens: there is a meta.pkl (which is code, so never read), or every id is
            below 256.
    Raises InputError for a missing folder, an unknown manifest, or a file whose size is not what the manifest says. The
    ids of a split are checked when it is taken (`TokenFolder.tokens`).
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"no token folder at {path}; make one with: harmonic-gpt prepare --source ... --out {path}")
    if (path / MANIFEST).exists() or token_files(path):
        manifest = read_manifest(path) if (path / MANIFEST).exists() else read_datatrove(path)
        splits = {name: Tokens(files, manifest.dtype, manifest.vocab_size) for name, files in manifest.files.items()}
        return TokenFolder(path, manifest.vocab_size, splits, manifest.values)
    return _open_nanogpt(path, vocab_size)


def _open_nanogpt(path: Path, vocab_size: int | None) -> TokenFolder:
    files = {name: path / f"{name}.bin" for name in SPLITS if (path / f"{name}.bin").is_file()}
    if not files:
        raise InputError(f"{path}: neither {MANIFEST} nor nanoGPT's train.bin and val.bin nor datatrove's train/*.ds")
    for file in files.values():
        if file.stat().st_size == 0 or file.stat().st_size % 2:
            raise InputError(f"{file}: expected uint16 token ids, got {file.stat().st_size} bytes")
    vocabulary_is = "as asked for"
    if vocab_size is None:
        largest = _largest_id(files, None if (path / "meta.pkl").exists() else 256)
        vocab_size, vocabulary_is = NANOGPT_VOCAB_SIZE, "GPT-2's, assumed"
        if largest is not None:
            vocab_size, vocabulary_is = largest + 1, "one more than the largest id; data.vocab_size sets another"
    splits = {name: Tokens([file], np.dtype("<u2"), vocab_size) for name, file in files.items()}
    return TokenFolder(path, vocab_size, splits, None, f" ({vocabulary_is})")


def _largest_id(files: dict[str, Path], below: int | None) -> int | None:
    """The largest id of all files; None as soon as one is not below `below`."""
    largest = 0
    for file in files.values():
        tokens = Tokens([file], np.dtype("<u2"), 2**16)
        for start in range(0, len(tokens), CHECK_TOKENS):
            largest = max(largest, int(tokens.read(start, CHECK_TOKENS).max()))
            if below is not None and largest >= below:
                return None
    return largest


def _identity(file: dict) -> str:
    """What a manifest knows a file's contents by."""
    return file["sha256"] or f"index {file['index_sha256']}"


def _read_notes(path: Path) -> dict:
    """What was noted; nothing where the note is missing or damaged."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}
