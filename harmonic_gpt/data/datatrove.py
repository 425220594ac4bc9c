"""What datatrove's DocumentTokenizer wrote, opened as it is: SPLIT/*.ds with their .index (and .metadata), and the
tokenizer beside them in `tokenizer`.

A .ds file is what our shards are, little-endian ids without a header. Its .index holds where each document ends, in
tokens. There is no checksum: sizes, ids and the end of every document are checked against the index instead.
"""

import hashlib
from pathlib import Path

import numpy as np

from harmonic_gpt.data.manifest import MANIFEST_VERSION, SPLITS, Manifest
from harmonic_gpt.data.tokenizer import load_tokenizer, tokenizer_hash
from harmonic_gpt.errors import InputError

SOURCE = "datatrove"


def token_files(folder: Path) -> dict[str, list[Path]]:
    """The .ds files of each split that has some, in the order of their names."""
    files = {split: sorted((folder / split).glob("*.ds")) for split in SPLITS}
    return {split: paths for split, paths in files.items() if paths}


def document_ends(files: list[Path]) -> np.ndarray:
    """Where documents end, counted in tokens over all files: (documents,) int64."""
    ends, start = [np.empty(0, np.int64)], 0
    for file in files:
        ends.append(_index(file).astype(np.int64) + start)
        start += int(ends[-1][-1]) - start if len(ends[-1]) else 0
    return np.concatenate(ends)


def read_datatrove(folder: Path) -> Manifest:
    """A manifest as `prepare` would have written it, without checksums. Raises InputError: no tokenizer, a task that
    has not finished, or files that do not fit together."""
    place = folder / "tokenizer"
    if not place.is_dir():
        raise InputError(f"{folder}: datatrove's files, but no tokenizer; put the one that wrote them in {place}")
    tokenizer = load_tokenizer(place)
    dtype = np.dtype("<u2") if len(tokenizer) <= 2**16 else np.dtype("<u4")
    names: set[str] = set()
    splits, files = {}, {}
    for split, paths in token_files(folder).items():
        entries = [(file, _entry(file, dtype, names)) for file in paths]
        entries = [(file, entry) for file, entry in entries if entry["tokens"]]  # a task may have had no document
        if entries:
            files[split] = [file for file, _ in entries]
            totals = {key: sum(entry[key] for _, entry in entries) for key in ("tokens", "documents")}
            splits[split] = totals | {"text_bytes": None, "files": [entry for _, entry in entries]}
    if not splits:
        raise InputError(f"{folder}: datatrove's files hold no document")
    if len(names) > 1:
        raise InputError(f"{folder}: its files were made with several tokenizers: {', '.join(sorted(names))}")
    of_source = {split: {**values, "files": len(values["files"])} for split, values in splits.items()}
    values = {
        "version": MANIFEST_VERSION,
        "dtype": dtype.name,
        "vocab_size": len(tokenizer),
        "end_of_text": tokenizer.eos_token_id,
        "tokenizer": {"name": names.pop() if names else str(place), "sha256": tokenizer_hash(tokenizer)},
        "request": {"source": SOURCE},
        "splits": splits,
        "sources": [{"name": SOURCE, "place": str(folder), "splits": of_source}],
        "notes": ["written by datatrove, without checksums: sizes, ids and ends of documents are those of the index"],
    }
    return Manifest(values, dtype, len(tokenizer), files)


def _index(file: Path) -> np.ndarray:
    index = file.with_name(file.name + ".index")
    if not index.is_file():
        raise InputError(f"{file} has no .index: its task has not finished, or ran with save_index=False")
    return np.fromfile(index, "<u8")


def _entry(file: Path, dtype: np.dtype, names: set[str]) -> dict:
    """What a manifest says of a file. Adds the name of its tokenizer to `names`."""
    ends = _index(file)
    tokens = int(ends[-1]) if len(ends) else 0
    size, item = file.stat().st_size, dtype.itemsize
    if (np.diff(ends, prepend=np.uint64(0)).astype(np.int64) <= 0).any():
        raise InputError(f"{file}.index is damaged: the ends of its documents do not rise")
    metadata = file.with_name(file.name + ".metadata")
    if metadata.is_file():  # "TOKENIZER|BYTES", tokens, and again in words
        name, _, written = metadata.read_text(encoding="utf-8").partition("\n")[0].rpartition("|")
        names.add(name)
        if written != str(item):
            raise InputError(f"{file} has tokens of {written} bytes; of its tokenizer they would have {item}")
    if size != tokens * item:
        raise InputError(
            f"{file}: its index says {tokens:,} tokens of {item} bytes, it has {size:,} bytes; copy it anew"
        )
    sha256 = hashlib.sha256(ends.tobytes()).hexdigest()
    return {
        "name": f"{file.parent.name}/{file.name}",
        "source": SOURCE,
        "tokens": tokens,
        "documents": len(ends),
        "text_bytes": None,
        "sha256": None,
        "index_sha256": sha256,
    }
