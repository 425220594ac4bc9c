"""manifest.json of a token folder: its name, its version, and how it is read. The writer is `prepare`."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harmonic_gpt.errors import InputError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Manifest:
    """What the file says (`values`), and the token files of each split, whose sizes have been checked."""

    values: dict
    dtype: np.dtype
    vocab_size: int
    files: dict[str, list[Path]]


def read_manifest(folder: Path) -> Manifest:
    """Raises InputError: not a manifest, another version, or a token file whose size is not the one it names."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != MANIFEST_VERSION:
            raise InputError(
                f"{path}: version {values['version']}, this program reads {MANIFEST_VERSION}; prepare it again"
            )
        dtype: np.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[values["dtype"]])
        for section, key in (("tokenizer", "sha256"), ("tokenizer", "name"), ("request", "source")):
            values[section][key]  # used later: a KeyError now, not then
        files = {
            name: [_token_file(folder, entry, dtype) for entry in split["files"]]
            for name, split in values["splits"].items()
        }
        return Manifest(values, dtype, int(values["vocab_size"]), files)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a manifest: {type(error).__name__} {error}") from error


def _token_file(folder: Path, entry: dict, dtype: np.dtype) -> Path:
    file = folder / Path(entry["name"]).name
    expected = int(entry["tokens"]) * dtype.itemsize
    entry["source"]  # used later, like what is above
    if not entry["sha256"] or not isinstance(entry["sha256"], str):
        raise InputError(
            f"{file}: expected its SHA-256 in {MANIFEST}, got {entry['sha256']!r}; prepare the folder again"
        )
    size = file.stat().st_size if file.is_file() else None
    if size != expected:
        there = "it is missing" if size is None else f"it has {size}"
        raise InputError(f"{file}: the manifest says {expected} bytes, {there}; prepare the folder again")
    return file
