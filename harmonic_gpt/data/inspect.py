"""What a token folder holds, and whether its files are as they were written."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.data.tokens import NANOGPT_VOCAB_SIZE, TokenFolder, Tokens, open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.progress import show_progress

WINDOW = 2**20  # tokens read at a time
SAMPLE_TOKENS = 60


@dataclass
class SplitReport:
    """One split, counted from its files. Lengths are in tokens, without the end-of-text token."""

    files: int
    tokens: int
    documents: int
    shortest: int | None  # None: no document ends
    longest: int | None
    text_bytes: int | None  # the manifest's; None without one


@dataclass
class Inspection:
    folder: TokenFolder
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    samples: dict[str, list[str]] = field(default_factory=dict)


def inspect_folder(path: str | Path, samples: int = 3, tokenizer: str | None = None) -> Inspection:
    """Read every file of a token folder: checksums, ids, documents; decode the starts of some documents of each split.

    Args:
        samples: documents to decode, evenly spaced; none without a tokenizer, nor of files that are not right.
        tokenizer: folder or hub name; default: the one in the folder (nanoGPT's folders have none).
    What is wrong with the files is in `problems`. Raises InputError if there is no token folder, or its sizes are
    wrong.
    """
    folder = open_token_folder(path)
    decoder_place = tokenizer or folder.tokenizer_path
    decoder = None if decoder_place is None else load_tokenizer(decoder_place)
    if decoder is not None:
        folder.check_tokenizer(decoder)
    end_of_text = folder.manifest["end_of_text"] if folder.manifest else NANOGPT_VOCAB_SIZE - 1
    inspection = Inspection(folder)
    total = sum(len(tokens) * tokens.dtype.itemsize for tokens in folder.splits.values())
    with show_progress(desc="verifying", total=total, unit=" bytes") as bar:
        for name, tokens in folder.splits.items():
            inspection.splits[name] = _scan(tokens, name, end_of_text, inspection, bar)
            if folder.manifest and not folder.has_checksums:
                try:
                    folder.verify(name, anew=True)
                except InputError as error:
                    inspection.problems.append(str(error))
            if decoder is not None and not inspection.problems:
                starts = _document_starts(tokens, end_of_text, samples)
                inspection.samples[name] = [str(decoder.decode(ids)) for ids in starts]
    return inspection


def _scan(tokens: Tokens, split: str, end_of_text: int, inspection: Inspection, bar: Any) -> SplitReport:
    """Count a split; what is wrong with it goes to the inspection's problems."""
    said = inspection.folder.manifest["splits"][split] if inspection.folder.manifest else None
    begin = place = 0  # of the current document, of the window; counted from the start of the split
    documents, shortest, longest = 0, len(tokens), 0
    for number, file in enumerate(tokens.files):
        sha256, beyond = hashlib.sha256(), 0
        with file.open("rb") as stream:
            while data := stream.read(WINDOW * tokens.dtype.itemsize):
                sha256.update(data)
                ids = np.frombuffer(data, tokens.dtype)
                beyond += int((ids >= tokens.vocab_size).sum())
                ends = np.flatnonzero(ids == end_of_text) + place
                if len(ends):
                    lengths = np.diff(ends, prepend=begin - 1) - 1
                    shortest, longest = min(int(lengths.min()), shortest), max(int(lengths.max()), longest)
                    documents, begin = documents + len(ends), int(ends[-1]) + 1
                place += len(ids)
                bar.update(len(data))
        if beyond:
            inspection.problems.append(f"{file}: {beyond:,} ids beyond the vocabulary of {tokens.vocab_size:,}")
        if said and inspection.folder.has_checksums and sha256.hexdigest() != said["files"][number]["sha256"]:
            inspection.problems.append(f"{file}: its SHA-256 is not the manifest's")
    if said and documents != said["documents"]:
        inspection.problems.append(f"{split}: {documents:,} documents, the manifest says {said['documents']:,}")
    return SplitReport(
        files=len(tokens.files),
        tokens=len(tokens),
        documents=documents,
        shortest=shortest if documents else None,
        longest=longest if documents else None,
        text_bytes=said["text_bytes"] if said else None,
    )


def _document_starts(tokens: Tokens, end_of_text: int, count: int) -> list[np.ndarray]:
    """The first ids of `count` documents, evenly spaced over the split."""
    starts = []
    for i in range(count):
        near = len(tokens) * i // count
        ends = np.flatnonzero(tokens.read(near, 2**16) == end_of_text) if near else np.array([-1])
        start = near + (int(ends[0]) + 1 if len(ends) else 0)
        ids = tokens.read(start, SAMPLE_TOKENS)
        stop = np.flatnonzero(ids == end_of_text)
        starts.append(ids[: stop[0]] if len(stop) else ids)
    return [ids for ids in starts if len(ids)]


def describe(inspection: Inspection) -> None:
    """Print a report."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    folder, manifest = inspection.folder, inspection.folder.manifest
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if manifest is None:
        vocabulary = f"vocabulary {folder.vocab_size:,}{folder.vocabulary_note}"
        console.print(f"{folder.path}: nanoGPT's files, without manifest; {vocabulary}")
    else:
        name, sha256 = manifest["tokenizer"]["name"], manifest["tokenizer"]["sha256"][:12]
        console.print(
            f"{folder.path}: {manifest['dtype']}, vocabulary {folder.vocab_size:,}, tokenizer {name} ({sha256})"
        )
        for source in manifest["sources"]:
            place = ", ".join(str(source[key]) for key in ("place", "config", "split", "revision") if source.get(key))
            facts = [f"{split['tokens']:,} {name} tokens" for name, split in source["splits"].items()]
            if "read" in source:
                dropped = f"{source['duplicates']:,} duplicates and {source['empty']:,} empty ones dropped"
                facts = [f"{source['read']:,} documents read, {dropped}; {', '.join(facts)}"]
            console.print(f"source {source['name']} ({place}): {', '.join(facts)}")
        for note in manifest.get("notes", []):
            console.print(f"note: {note}")
    table = Table("", *inspection.splits, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    reports = inspection.splits.values()
    rows = {
        "tokens": [f"{r.tokens:,}" for r in reports],
        "documents": [f"{r.documents:,}" for r in reports],
        "shortest document (tokens)": ["-" if r.shortest is None else f"{r.shortest:,}" for r in reports],
        "longest document (tokens)": ["-" if r.longest is None else f"{r.longest:,}" for r in reports],
        "tokens per byte": [f"{r.tokens / r.text_bytes:.4f}" if r.text_bytes else "-" for r in reports],
        "files": [f"{r.files:,}" for r in reports],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    console.print(table)
    for split, texts in inspection.samples.items():
        for text in texts:
            console.print(f"{split}: {text!r}")
    if manifest is not None and not inspection.problems:
        right = "are as they were written" if folder.has_checksums else "agree with their index"
        console.print(f"checked: all {sum(r.files for r in reports)} files {right}")
