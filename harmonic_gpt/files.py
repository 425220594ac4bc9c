"""Files that are whole or not there, and the hashes that prove it: the one place that makes a write durable."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmonic_gpt.errors import InputError


def sync(path: Path) -> None:
    """Put a file's contents, or the names in a folder, on the disk: a renamed file may not survive a power cut else."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: whatever happens, the old contents stay until the new are on the disk."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_new_folder(out: str | Path) -> Path:
    """The path of a folder that is to be made. Raises InputError if anything but an empty folder is there."""
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists; name a new folder")
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which is renamed to `out` after the block. If the block raises, nothing is left behind."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / out.name  # one deeper: what tempfile makes is closed to other users
        folder.mkdir()
        yield folder
        folder.replace(out)
    sync(out.parent)


def read_jsonl(path: Path) -> list[dict]:
    """One object a line; a line cut short by a crash is left out, a file that is not there has none."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
