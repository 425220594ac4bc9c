"""Documents to token files: shards for each split, the tokenizer, and a manifest that says what they hold.

Reading, finding duplicates and writing are sequential, so the files depend on the documents alone; only tokenizing is
parallel. Work proceeds by batches, and every finished shard is a checkpoint (`progress.json`) from which a killed run
continues.
"""

import json
import os
import platform
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from harmonic_gpt.data.encoding import Encoded, EncoderSpec, encoder_spec
from harmonic_gpt.data.manifest import MANIFEST, MANIFEST_VERSION
from harmonic_gpt.data.reading import Batch, Reader
from harmonic_gpt.data.request import MIN_VOCAB_SIZE, SHARD_TOKENS, VALIDATION_SHARE, normalized
from harmonic_gpt.data.shards import PROGRESS, SEEN, Progress, read_progress
from harmonic_gpt.data.sources import open_source
from harmonic_gpt.data.split import NANOGPT_SHARE, SeenDocuments
from harmonic_gpt.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from harmonic_gpt.data.workers import PROCESSES_FROM, Encoders
from harmonic_gpt.errors import InputError, option
from harmonic_gpt.files import sync, write_json
from harmonic_gpt.progress import show_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOCK = ".lock"
LOWEST_HASH = "no content hash is below validation_share: the document with the lowest one is for validation"
TOKENIZER_TEXT = 200_000_000  # characters that a tokenizer is trained on; its memory grows with them


def prepare(
    source: str | Sequence[str],
    out: str | Path,
    *,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    validation: str = "content",
    validation_share: float | None = None,
    text_column: str = "text",
    drop_duplicates: bool = True,
    shard_tokens: int = SHARD_TOKENS,
    num_workers: int | None = None,
) -> Path:
    """Write a token folder.

    Each document becomes its ids and one end-of-text id. Empty documents are dropped. The work is done in the folder
    OUT.partial, which takes the name OUT when it is complete; the same call continues what a killed one left there.

    Args:
        source: one or several; see `sources.open_source`.
        out: folder to create; must not exist.
        tokenizer: folder or hub name; None trains a byte-level BPE of `vocab_size` (default 4096) on the training
            documents.
        validation: "content": by content hash, `validation_share` (default 0.05) of the documents, and one at least;
            "nanogpt": the documents that nanoGPT's prepare.py takes, by their place in the source (0.0005 of them).
        drop_duplicates: drop documents that are equal to an earlier one, of any source.
        shard_tokens: a shard ends with the batch of documents in which it reaches this size.
        num_workers: threads or processes that tokenize; default: the cores. The files do not depend on it.
    Returns the folder. Raises InputError: `out` exists, empty corpus, empty split, unknown source or tokenizer, a file
    that cannot be read, or a folder OUT.partial that was begun otherwise. Raises OSError if the disk is full. Finished
    shards survive both.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder, or remove it to prepare it anew")
    if tokenizer is not None and vocab_size is not None:
        chosen, trained = option("tokenizer"), option("vocab_size")
        raise InputError(f"{trained} is for a tokenizer to be trained; give either {chosen} or {trained}")
    if vocab_size is not None and vocab_size < MIN_VOCAB_SIZE:
        least = f"{MIN_VOCAB_SIZE} (256 bytes and end-of-text)"
        raise InputError(f"{option('vocab_size')}: expected at least {least}, got {vocab_size}")
    for name, value in ("shard_tokens", shard_tokens), ("num_workers", num_workers):
        if value is not None and value < 1:
            raise InputError(f"{option(name)}: expected at least 1, got {value}")
    places = [source] if isinstance(source, str) else list(source)
    if not places:
        raise InputError("no source is given")
    request = normalized(
        {
            "source": places,
            "text_column": text_column,
            "validation": validation,
            "validation_share": _validation_share(validation, validation_share),
            "drop_duplicates": drop_duplicates,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "shard_tokens": shard_tokens,
        }
    )
    partial = out.with_name(out.name + ".partial")
    with _claim(partial):
        if _is_complete(partial):
            _same_request(partial, json.loads((partial / MANIFEST).read_text(encoding="utf-8")), {"request": request})
        else:
            _fill(partial, request, num_workers or _cores())
        for name in (SEEN, LOCK):
            (partial / name).unlink(missing_ok=True)
        try:
            partial.rename(out)
        except OSError as error:
            raise InputError(
                f"{out} was made by another process in the meantime; this one's work is in {partial}"
            ) from error
    sync(out.parent)
    return out


def _validation_share(validation: str, share: float | None) -> float:
    if validation not in ("content", "nanogpt"):
        raise InputError(f"{option('validation')}: expected content or nanogpt, got {validation!r}")
    if validation == "nanogpt" and share not in (None, NANOGPT_SHARE):
        raise InputError(f"{option('validation_share')}: nanoGPT's is {NANOGPT_SHARE}, got {share}; leave it out")
    if share is None:
        return NANOGPT_SHARE if validation == "nanogpt" else VALIDATION_SHARE
    if not 0 < share < 1:
        raise InputError(
            f"{option('validation_share')}: expected more than 0 and less than 1, got {share}; a run needs both splits"
        )
    return share


def _is_complete(partial: Path) -> bool:
    """Whether a preparation was killed between completing the folder and naming it."""
    return (partial / MANIFEST).is_file() and not (partial / PROGRESS).is_file()


@contextmanager
def _claim(partial: Path) -> Iterator[None]:
    """The working folder, for this process alone. A killed process gives it back."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is preparing {partial}") from error
    try:
        yield
    finally:
        if partial.is_dir() and {path.name for path in partial.iterdir()} <= {LOCK}:
            shutil.rmtree(partial)
        lock.release()


def _fill(partial: Path, request: dict, num_workers: int) -> None:
    """Prepare the token folder `partial`, from the start or from where its record says."""
    stored = read_progress(partial)
    strange = {path.name for path in partial.iterdir()} - {"tokenizer", SEEN, LOCK, f".{PROGRESS}"}
    if stored is None and strange:
        raise InputError(f"{partial} is not the work of this program (it holds {min(strange)!r}); rename or remove it")
    progress = None
    try:
        header: dict = {"request": request, "versions": _versions()}
        if stored is not None:
            _same_request(partial, stored, header)
        places = [request["source"]] if isinstance(request["source"], str) else request["source"]
        revisions = [s["provenance"].get("revision") for s in stored["sources"]] if stored else [None] * len(places)
        sources = [
            open_source(place, request["text_column"], revision)
            for place, revision in zip(places, revisions, strict=True)
        ]
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise InputError(
                f"two sources are called {twice!r}; give one another name: {option('source')} 'PLACE,name=...'"
            )
        header["sources"] = [{"name": s.name, "provenance": s.provenance, "parts": s.parts} for s in sources]
        if stored is not None:
            _same_files(stored, header, partial)
        reader = Reader(sources, request["validation"], request["validation_share"], request["drop_duplicates"])
        trained = _tokenizer(reader, partial, request, stored is not None)
        spec = encoder_spec(trained)
        dtype = np.dtype("<u2") if len(trained) <= 2**16 else np.dtype("<u4")
        progress = Progress(partial, header, names, dtype, request["shard_tokens"])
        if stored is None:
            progress.save()
        _tokenize(reader, spec, progress, num_workers)
        _finish(progress, trained, spec.library, [LOWEST_HASH] if reader.lowest_hash else [])
    except BaseException as error:
        if progress is not None:
            progress.close()
        if not (stored or (progress is not None and progress.has_finished_shards)):
            shutil.rmtree(partial, ignore_errors=True)
            raise
        kept = f"finished shards are in {partial}, and the same command continues"
        if isinstance(error, InputError):
            raise InputError(f"{error} ({kept})") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"{error.strerror} ({kept})", error.filename) from error
        raise


def _same_request(partial: Path, there: dict, asked: dict) -> None:
    """Raises InputError unless a preparation that was begun is the one that is asked for now."""
    for section, values in asked.items():
        begun = normalized(there[section]) if section == "request" else there[section]
        differing = [f"{option(k)}: {begun.get(k)!r} there, {v!r} now" for k, v in values.items() if begun.get(k) != v]
        if differing:
            raise InputError(f"{partial} was begun otherwise ({'; '.join(differing)}); ask for the same, or remove it")


def _same_files(stored: dict, header: dict, partial: Path) -> None:
    """Raises InputError unless the sources have the files that they had, and those that were read have their sizes."""
    source, part, batch = stored["position"]
    for index, (there, now) in enumerate(zip(stored["sources"], header["sources"], strict=True)):
        before, after = dict(there["parts"]), dict(now["parts"])
        files_read = part + (batch > 0) if index == source else len(before) if index < source else 0
        read = list(before)[:files_read]
        changed = f"the files of {there['name']}" if list(before) != list(after) else None
        changed = next((name for name in read if before[name] != after.get(name)), changed)
        if changed:
            raise InputError(f"{changed} changed since {partial} was begun; remove {partial} to begin anew")


def _tokenizer(reader: Reader, partial: Path, request: dict, continued: bool) -> "PreTrainedTokenizerBase":
    """Load or train the tokenizer; it lies in the token folder from the start."""
    folder = partial / "tokenizer"
    if continued:
        return load_tokenizer(folder)
    if request["tokenizer"] is not None:
        tokenizer = load_tokenizer(request["tokenizer"])
    else:
        # Of every source as much, so that the order of the sources decides nothing
        share = TOKENIZER_TEXT // len(reader.sources)
        texts = chain.from_iterable(_leading_text(reader, source, share) for source in range(len(reader.sources)))
        first = next(texts, None)
        if first is None:
            raise InputError(f"{request['source']}: no training documents")
        tokenizer = train_tokenizer(chain([first], texts), request["vocab_size"])
    tokenizer.save_pretrained(folder)
    return tokenizer


def _leading_text(reader: Reader, source: int, characters: int) -> Iterator[str]:
    """The first training documents of a source, of so many characters."""
    for batch in reader.batches((source, 0, 0)):
        if batch.source != source:
            return
        for text in batch.texts["train"]:
            yield text
            characters -= len(text)
            if characters <= 0:
                return


def _tokenize(reader: Reader, spec: EncoderSpec, progress: Progress, num_workers: int) -> None:
    """Read, tokenize and write until the sources end."""
    pending: deque[tuple[Batch, Future[Encoded]]] = deque()
    rows = [source.rows for source in reader.sources]
    total = None if None in rows else sum(filter(None, rows))
    bar = show_progress(desc="tokenizing", unit=" documents", total=total)
    bar.update(sum(counts["read"] for counts in progress.counts))

    def write_one() -> None:
        batch, future = pending.popleft()
        progress.write(batch, future.result())
        bar.update(batch.read)

    with bar, Encoders(spec, progress.writers["train"].dtype, num_workers, PROCESSES_FROM) as encoders:
        for batch in reader.batches(progress.position, progress.rows, SeenDocuments(progress.seen_keys())):
            pending.append((batch, encoders.submit(batch.texts)))
            if len(pending) > 2 * num_workers:
                write_one()
        while pending:
            write_one()


def _finish(progress: Progress, tokenizer: "PreTrainedTokenizerBase", library: str, notes: list[str]) -> None:
    """The last shards and the manifest; then the folder is a token folder."""
    for split, writer in progress.writers.items():
        if not writer.counts.tokens and not writer.finished:
            total = sum(counts["read"] - counts["duplicates"] - counts["empty"] for counts in progress.counts)
            hint = f"; change {option('validation_share')} or add text" if total > 1 else ""
            if total == 1:
                hint = "; a run needs two documents at least, one for each split"
            raise InputError(f"{progress.header['request']['source']}: no {split} documents among {total}{hint}")
    progress.finish_shards()
    splits = {
        split: _totals(writer.finished) | {"files": writer.finished} for split, writer in progress.writers.items()
    }
    sources = []
    for source, counts in zip(progress.header["sources"], progress.counts, strict=True):
        mine = {
            split: _totals([f for f in writer.finished if f["source"] == source["name"]])
            for split, writer in progress.writers.items()
        }
        files = [{"name": name} | ({} if size is None else {"bytes": size}) for name, size in source["parts"]]
        sources.append({"name": source["name"], **source["provenance"], **counts, "splits": mine, "files": files})
    manifest = {
        "version": MANIFEST_VERSION,
        "dtype": progress.writers["train"].dtype.name,
        "vocab_size": len(tokenizer),
        "end_of_text": tokenizer.eos_token_id,
        "tokenizer": {
            "name": progress.header["request"]["tokenizer"] or "trained byte-level BPE",
            "sha256": tokenizer_hash(tokenizer),
        },
        "request": progress.header["request"],
        "duplicates": sum(counts["duplicates"] for counts in progress.counts),
        "empty": sum(counts["empty"] for counts in progress.counts),
        "splits": splits,
        "sources": sources,
        "notes": notes,
        "encoder": library,
        "versions": progress.header["versions"],
    }
    progress.close()
    write_json(progress.folder / MANIFEST, manifest)
    (progress.folder / PROGRESS).unlink()  # from here on the manifest alone says that the folder is complete


def _totals(files: list[dict]) -> dict:
    return {key: sum(file[key] for file in files) for key in ("tokens", "documents", "text_bytes")}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("tokenizers", "transformers", "tiktoken", "datasets"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
