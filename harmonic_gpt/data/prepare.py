"""Documents to token files: `train.bin`, `val.bin`, the tokenizer, and a manifest that says what they hold."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.tokenizer import load_tokenizer, ordinary_encoder, tokenizer_hash, train_tokenizer
from harmonic_gpt.errors import InputError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
SPLITS = ("train", "val")
DEFAULT_VOCAB_SIZE = 4096
BATCH_DOCUMENTS = 256


def content_hash(text: str) -> bytes:
    """16 bytes that identify a document; they decide its split and find its duplicates."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_validation(digest: bytes, share: float) -> bool:
    """Membership depends on the document alone: adding documents moves none from one split to the other."""
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass
class _TokenFile:
    """A split being written; what the manifest says about it is counted on the way."""

    path: Path
    dtype: np.dtype
    file: BinaryIO = field(init=False)
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0

    def __post_init__(self):
        self.file = self.path.open("wb")

    def write(self, ids: list[int], text_bytes: int) -> None:
        data = np.asarray(ids, dtype=self.dtype).tobytes()
        self.file.write(data)
        self.sha256.update(data)
        self.tokens += len(ids)
        self.documents += 1
        self.text_bytes += text_bytes

    def close(self) -> dict:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        totals = {"tokens": self.tokens, "documents": self.documents, "text_bytes": self.text_bytes}
        return totals | {"files": [{"name": self.path.name, "tokens": self.tokens, "sha256": self.sha256.hexdigest()}]}


def prepare(
    source: str,
    out: str | Path,
    *,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    validation_share: float = 0.05,
    text_column: str = "text",
) -> Path:
    """Write a token folder.

    Each document becomes its ids and one end-of-text id. Exact duplicates are dropped. The folder appears under its name only
    when it is complete.

    Args:
        source: see `sources.documents`.
        out: folder to create; must not exist.
        tokenizer: folder or hub name; None trains a byte-level BPE of `vocab_size` (default 4096) on the training documents.
        validation_share: share of documents that go to validation, chosen by content hash.
    Returns the folder. Raises InputError: `out` exists, empty corpus, empty split, unknown source or tokenizer.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder, or remove it to prepare it anew")
    if tokenizer is not None and vocab_size is not None:
        raise InputError("vocab_size is for a tokenizer to be trained; give either a tokenizer or a vocab_size")

    request = {"source": source, "text_column": text_column, "validation_share": validation_share}
    request |= {"tokenizer": tokenizer, "vocab_size": vocab_size}

    def training_documents() -> Iterator[str]:
        unique = _unique(documents(source, text_column), {})
        return (text for digest, text in unique if not is_validation(digest, validation_share))

    if tokenizer is None:
        texts = iter(training_documents())
        first = next(texts, None)
        if first is None:
            raise InputError(f"{source}: no training documents")
        trained = train_tokenizer(chain([first], texts), vocab_size or DEFAULT_VOCAB_SIZE)
    else:
        trained = load_tokenizer(tokenizer)
    encoder = ordinary_encoder(trained)
    dtype = np.dtype("<u2") if len(trained) <= 2**16 else np.dtype("<u4")

    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        splits = {name: _TokenFile(folder / f"{name}.bin", dtype) for name in SPLITS}
        counts = {"duplicates": 0}
        stream = iter(tqdm(_unique(documents(source, text_column), counts), desc="tokenising", unit=" documents", disable=None))
        while batch := list(islice(stream, BATCH_DOCUMENTS)):
            encodings = encoder.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
            for (digest, text), encoding in zip(batch, encodings, strict=True):
                split = splits["val" if is_validation(digest, validation_share) else "train"]
                split.write([*encoding.ids, trained.eos_token_id], len(text.encode("utf-8", "surrogatepass")))
        summaries = {name: split.close() for name, split in splits.items()}
        for name, summary in summaries.items():
            if not summary["tokens"]:
                total = sum(s["documents"] for s in summaries.values())
                raise InputError(
                    f"{source}: no {name} documents among {total}" + ("" if total == 0 else "; change validation_share or add text")
                )
        trained.save_pretrained(folder / "tokenizer")
        manifest = {
            "version": MANIFEST_VERSION,
            "dtype": dtype.name,
            "vocab_size": len(trained),
            "end_of_text": trained.eos_token_id,
            "tokenizer": {"name": tokenizer or "trained byte-level BPE", "sha256": tokenizer_hash(trained)},
            "request": request,
            "duplicates": counts["duplicates"],
            "splits": summaries,
            "versions": {
                "python": platform.python_version(),
                "tokenizers": version("tokenizers"),
                "transformers": version("transformers"),
            },
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        folder.chmod(0o755)  # mkdtemp's 0700 is for secrets
        try:
            folder.rename(out)
        except OSError:
            raise InputError(f"{out} was made by another process in the meantime; it has been left as it is") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return out


def _unique(texts: Iterable[str], counts: dict) -> Iterator[tuple[bytes, str]]:
    """(content hash, text) of each document that is not empty and was not seen before."""
    seen = set()
    for text in texts:
        digest = content_hash(text)
        if not text or digest in seen:
            counts["duplicates"] = counts.get("duplicates", 0) + bool(text)
            continue
        seen.add(digest)
        yield digest, text
