"""Token shards that are whole or not there, and the record from which a killed preparation continues."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from harmonic_gpt.data.manifest import SPLITS
from harmonic_gpt.errors import InputError
from harmonic_gpt.files import write_json

PROGRESS = "progress.json"
RECORD = {  # what is in it
    "request": dict, "versions": dict, "sources": list, "position": list, "source": int, "counts": list, "seen": int,
    "writers": dict,
}  # fmt: skip
SEEN = "seen.bin"
UNFINISHED = ".tmp"


@dataclass
class Counts:
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0


class ShardWriter:
    """The shards of one split: SPLIT-00000.bin, SPLIT-00001.bin, ..., little-endian ids without a header.

    A shard is written under a name that ends in .tmp; it gets its own when it is complete and on the disk.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, state: dict):
        """`state` is what `state()` said earlier, or {}: an unfinished shard is cut back to that point."""
        self.folder, self.split, self.dtype = folder, split, dtype
        self.finished: list[dict] = state.get("finished", [])
        self.file: BinaryIO | None
        self._begin()
        if state.get("open"):
            self._reopen(Counts(**state["open"]))

    def _begin(self) -> None:
        self.counts, self.sha256, self.file = Counts(), hashlib.sha256(), None
        self.name = f"{self.split}-{len(self.finished):05}.bin"
        self._unfinished = self.folder / (self.name + UNFINISHED)

    def _reopen(self, counts: Counts) -> None:
        if (self.folder / self.name).exists():  # finished after the record was written
            (self.folder / self.name).rename(self._unfinished)
        size = counts.tokens * self.dtype.itemsize
        if not self._unfinished.exists() or self._unfinished.stat().st_size < size:
            raise InputError(f"{self._unfinished} is not as the record says; remove {self.folder} to begin anew")
        file = self._unfinished.open("r+b")
        file.truncate(size)
        while block := file.read(2**20):
            self.sha256.update(block)
        self.file, self.counts = file, counts

    def write(self, ids: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append the ids of whole documents."""
        if self.file is None:
            self.file = self._unfinished.open("wb")
        data = np.ascontiguousarray(ids, self.dtype).data.cast("B")
        self.file.write(data)
        self.sha256.update(data)
        self.counts.tokens += len(ids)
        self.counts.documents += documents
        self.counts.text_bytes += text_bytes

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def finish(self, source: str) -> None:
        """End the shard, if one is begun."""
        if self.file is None:
            return
        self.flush()
        self.file.close()
        self._unfinished.rename(self.folder / self.name)
        entry = {"name": self.name, "source": source, **asdict(self.counts), "sha256": self.sha256.hexdigest()}
        self.finished.append(entry)
        self._begin()

    def state(self) -> dict:
        return {"finished": self.finished, "open": asdict(self.counts) if self.file is not None else None}


class Progress:
    """A preparation in its folder: finished shards, how far the open ones go, where the reader stands.

    `save` puts all of it on the disk; it is called when a shard is finished. Until then a kill costs the work since the
    last one.
    """

    def __init__(self, folder: Path, header: dict, sources: list[str], dtype: np.dtype, shard_tokens: int):
        """Begin, or continue from the record in the folder. `header` is written to the record for those who read it."""
        stored = read_progress(folder) or {}
        self.folder, self.header, self.names, self.shard_tokens = folder, header, sources, shard_tokens
        self.position: list[int] = stored.get("position", [0, 0, 0])
        self.source: int = stored.get("source", 0)  # the one that the open shards belong to
        self.counts: list[dict] = stored.get("counts", [{"read": 0, "duplicates": 0, "empty": 0} for _ in sources])
        self.seen: int = stored.get("seen", 0)
        writers = stored.get("writers", {})
        self.writers = {split: ShardWriter(folder, split, dtype, writers.get(split, {})) for split in SPLITS}
        self._remove_what_is_newer()
        (folder / SEEN).touch()
        if (folder / SEEN).stat().st_size < self.seen * 8:
            raise InputError(f"{folder / SEEN} is not as the record says; remove {folder} to begin anew")
        self._seen_file = (folder / SEEN).open("r+b")
        self._seen_file.truncate(self.seen * 8)
        self._seen_file.seek(0, os.SEEK_END)

    def _remove_what_is_newer(self) -> None:
        known = {SEEN}
        for writer in self.writers.values():
            if writer.file:
                known.add(writer.name + UNFINISHED)
            for entry in writer.finished:
                known.add(entry["name"])
                file = self.folder / entry["name"]
                if not file.is_file() or file.stat().st_size != entry["tokens"] * writer.dtype.itemsize:
                    raise InputError(f"{file} is not as the record says; remove {self.folder} to begin anew")
        for path in [*self.folder.glob("*.bin"), *self.folder.glob("*" + UNFINISHED)]:
            if path.name not in known:
                path.unlink()

    def seen_keys(self) -> np.ndarray:
        return np.fromfile(self.folder / SEEN, "<u8", self.seen)

    @property
    def rows(self) -> int:
        """Documents read of the source at `position`."""
        return self.counts[self.position[0]]["read"]

    @property
    def has_finished_shards(self) -> bool:
        return any(writer.finished for writer in self.writers.values())

    def write(self, batch, encoded: dict[str, tuple[np.ndarray, int, int]]) -> None:
        """Take a `reading.Batch` and, for each split, its (ids, documents, bytes of text)."""
        if batch.source != self.source:
            self.finish_shards()
            self.source = batch.source
        for split, (ids, documents, text_bytes) in encoded.items():
            if documents:
                self.writers[split].write(ids, documents, text_bytes)
        counts = self.counts[batch.source]
        for key, number in (("read", batch.read), ("duplicates", batch.duplicates), ("empty", batch.empty)):
            counts[key] += number
        self._seen_file.write(batch.keys.tobytes())
        self.seen += len(batch.keys)
        self.position = batch.position
        full = [writer for writer in self.writers.values() if writer.counts.tokens >= self.shard_tokens]
        for writer in full:
            writer.finish(self.names[self.source])
        if full:
            self.save()

    def finish_shards(self) -> None:
        for writer in self.writers.values():
            writer.finish(self.names[self.source])

    def save(self) -> None:
        for writer in self.writers.values():
            writer.flush()
        self._seen_file.flush()
        os.fsync(self._seen_file.fileno())
        state = {
            "position": self.position,
            "source": self.source,
            "counts": self.counts,
            "seen": self.seen,
            "writers": {split: writer.state() for split, writer in self.writers.items()},
        }
        write_json(self.folder / PROGRESS, self.header | state)

    def close(self) -> None:
        """Close without writing a record: what is in the files beyond the last one is not wanted."""
        for file in [self._seen_file, *(writer.file for writer in self.writers.values())]:
            if file is not None:
                with contextlib.suppress(OSError):  # the disk may be full
                    file.close()


def read_progress(folder: Path) -> dict | None:
    """The record of a preparation, or None. Raises InputError for one that cannot be read, or that is none."""
    try:
        stored = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        wrong = [
            key for key, kind in RECORD.items() if not isinstance(stored, dict) or type(stored.get(key)) is not kind
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} is not what this program writes")
        return stored
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{folder / PROGRESS} is damaged; remove {folder} to begin anew") from error
