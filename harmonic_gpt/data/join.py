"""Several token folders as one, without writing a token: a manifest over linked shards."""

import os
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_gpt.data.manifest import MANIFEST, MANIFEST_VERSION, SPLITS
from harmonic_gpt.data.tokens import CHECK_TOKENS, TokenFolder, Tokens, open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.files import check_new_folder, file_sha256, new_folder, write_json
from harmonic_gpt.progress import show_progress

SAME = ("dtype", "vocab_size", "end_of_text", "tokenizer")  # or an id in one folder is another token in the next


def join(folders: Sequence[str | Path], out: str | Path, *, count_duplicates: bool = True) -> Path:
    """Make a token folder of others' files: hard links, or symbolic ones where the file system has no such links.

    Documents keep their split and their source; sources of the same name become one, for `data.weights`.

    Args:
        folders: what `prepare`, datatrove or `join` made, with one tokenizer.
        out: new folder.
        count_duplicates: count the documents that a folder shares with an earlier one, and the validation documents
            that are also training documents, of the same folder or another. It reads every token once and keeps 8
            bytes a document, 16 for a moment. None is taken out: that would be a rewriting.
    Returns the folder. Raises InputError: `out` holds something, a folder is none or comes twice, tokenizers differ.
    """
    out = check_new_folder(out)
    opened = [open_token_folder(Path(folder).expanduser()) for folder in folders]
    manifests = _manifests(opened)
    shared = _shared_documents(opened, manifests[0]["end_of_text"]) if count_duplicates else None
    with new_folder(out) as made:
        splits = {split: _link(opened, split, made) for split in SPLITS}
        place = opened[0].tokenizer_path
        if place is not None:
            shutil.copytree(place, made / "tokenizer")
        notes = [note for manifest in manifests for note in manifest.get("notes", [])]
        if shared and shared["validation_documents_in_training"]:
            leaked = shared["validation_documents_in_training"]
            notes.append(f"{leaked:,} validation documents are also training documents, of the same folder or another")
        manifest = {
            "version": MANIFEST_VERSION,
            **{key: manifests[0][key] for key in SAME},
            "request": {
                "source": [source["place"] for manifest in manifests for source in manifest["sources"]],
                "joined": [str(folder) for folder in folders],
            },
            "duplicates": sum(manifest.get("duplicates", 0) for manifest in manifests),
            "empty": sum(manifest.get("empty", 0) for manifest in manifests),
            "shared_documents": shared,
            "splits": splits,
            "sources": [source for manifest in manifests for source in manifest["sources"]],
            "notes": list(dict.fromkeys(notes)),
            "encoder": [manifest.get("encoder") for manifest in manifests],
            "versions": [manifest.get("versions") for manifest in manifests],
        }
        write_json(made / MANIFEST, manifest)
    return out


def _manifests(folders: list[TokenFolder]) -> list[dict]:
    """The folders' manifests. Raises InputError unless their ids mean the same."""
    manifests: list[dict] = []
    for folder in folders:
        if folder.manifest is None:
            raise InputError(f"{folder.path}: nanoGPT's files do not say what their ids mean, and cannot be joined")
        first = manifests[0] if manifests else folder.manifest
        for key in SAME:
            there, here = (m["tokenizer"]["sha256"] if key == "tokenizer" else m[key] for m in (first, folder.manifest))
            if there != here:
                names = [m["tokenizer"]["name"] for m in (first, folder.manifest)]
                what = (
                    f"the tokenizer {names[1]!r}, not {names[0]!r}"
                    if key == "tokenizer"
                    else f"{key} {here}, not {there}"
                )
                raise InputError(f"{folder.path} has {what}, as {folders[0].path} has; ids would mean other tokens")
        manifests.append(folder.manifest)
    if not folders:
        raise InputError("no token folder is given")
    places = [folder.path.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise InputError(f"{max(places, key=places.count)} is given twice")
    return manifests


def _link(folders: list[TokenFolder], split: str, place: Path) -> dict:
    """Link a split's files into `place`; what the manifest says of them."""
    entries: list[dict] = []
    for folder in folders:
        if split not in folder.splits or folder.manifest is None:
            continue
        for file, entry in zip(folder.splits[split].files, folder.manifest["splits"][split]["files"], strict=True):
            name = f"{split}-{len(entries):05}.bin"
            try:
                os.link(file.resolve(), place / name)
            except OSError:  # on another file system, or of another owner
                (place / name).symlink_to(file.resolve())
            sha256 = entry["sha256"] or file_sha256(file)
            kept = {key: entry[key] for key in ("source", "tokens", "documents", "text_bytes")}
            entries.append({"name": name, **kept, "sha256": sha256})
    totals = {key: _sum([entry[key] for entry in entries]) for key in ("tokens", "documents", "text_bytes")}
    return totals | {"files": entries}


def _sum(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _shared_documents(folders: list[TokenFolder], end_of_text: int) -> dict[str, int]:
    """Documents are compared by their ids: with one tokenizer, equal ids are equal texts."""
    keys: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    each = 0
    total = sum(len(tokens) for folder in folders for tokens in folder.splits.values())
    with show_progress(desc="comparing documents", total=total, unit=" tokens") as bar:
        for folder in folders:
            mine = {split: _document_keys(tokens, end_of_text, bar) for split, tokens in folder.splits.items()}
            each += len(np.unique(np.concatenate(list(mine.values()))))
            for split, of_split in mine.items():
                keys[split].append(of_split)
    of_splits = {
        split: np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64) for split, parts in keys.items()
    }
    in_both = len(np.intersect1d(of_splits["train"], of_splits["val"], assume_unique=True))
    different = len(np.unique(np.concatenate(list(of_splits.values()))))
    return {"documents_of_an_earlier_folder": each - different, "validation_documents_in_training": in_both}


def _document_keys(tokens: Tokens, end_of_text: int, bar: Any) -> np.ndarray:
    """8 bytes that a document is known by, for each that ends: (documents,) uint64."""
    keys: list[bytes] = []
    begun = blake2b(digest_size=8)  # the document that the last window ended in
    for start in range(0, len(tokens), CHECK_TOKENS):
        for window in tokens.windows(start, CHECK_TOKENS):
            data, size = window.data.cast("B"), window.itemsize
            place = 0
            for end in ((np.flatnonzero(window == end_of_text) + 1) * size).tolist():
                begun.update(data[place:end])
                keys.append(begun.digest())
                begun, place = blake2b(digest_size=8), end
            begun.update(data[place:])
            bar.update(len(window))
    return np.frombuffer(b"".join(keys), "<u8")
