"""Sources to batches of documents: without empty ones and duplicates, each document in its split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from harmonic_gpt.data.sources import Source
from harmonic_gpt.data.split import SeenDocuments, content_hash, is_validation, nanogpt_validation
from harmonic_gpt.errors import InputError


@dataclass
class Batch:
    """Documents that are tokenized together, and where the reader stands behind them."""

    source: int
    position: list[int]  # source, part, batch: the next to read
    texts: dict[str, list[str]]  # by split
    keys: np.ndarray  # what `SeenDocuments` knows the kept ones by; none if duplicates are kept
    read: int  # documents, before any was dropped
    duplicates: int
    empty: int


class Reader:
    """Reads sources one after the other. What it yields is a function of the documents alone."""

    def __init__(self, sources: list[Source], validation: str, validation_share: float, drop_duplicates: bool):
        self.sources, self.share, self.drop_duplicates = sources, validation_share, drop_duplicates
        self.membership: list[np.ndarray] | None = None  # of each source's documents, by place
        self.lowest_hash: bytes | None = None  # of the document that is for validation because no other would be
        if validation == "nanogpt":
            self.membership = [nanogpt_validation(source.count_rows()) for source in sources]
        else:
            self.lowest_hash = self._lowest_hash()

    def _lowest_hash(self) -> bytes | None:
        """None if some document's hash is below the share, which reading on to the first such document tells, or if
        there are not two documents to share out."""
        hashes: set[bytes] = set()
        for source in self.sources:
            for text in chain.from_iterable(map(source.read, range(len(source.parts)))):
                if text:
                    digest = content_hash(text)
                    if is_validation(digest, self.share):
                        return None
                    hashes = {min(hashes, default=digest), digest, max(hashes, default=digest)}
        return min(hashes) if len(hashes) > 1 else None

    def batches(
        self, position: Sequence[int] = (0, 0, 0), row: int = 0, seen: SeenDocuments | None = None
    ) -> Iterator[Batch]:
        """Batches from a position on, which is `row` documents into its source; `seen` are those kept before."""
        seen = seen or SeenDocuments()
        first_source, first_part, first_batch = position
        for index in range(first_source, len(self.sources)):
            source = self.sources[index]
            row = row if index == first_source else 0
            for part in range(first_part if index == first_source else 0, len(source.parts)):
                skip = first_batch if (index, part) == tuple(position[:2]) else 0
                for number, texts in enumerate(source.batches(part)):
                    if number < skip:
                        continue
                    yield self._batch(index, [index, part, number + 1], texts, row, seen)
                    row += len(texts)
            if self.membership is not None and row != len(self.membership[index]):
                announced = f"{len(self.membership[index]):,} were announced"
                raise InputError(f"{source.spec}: {row:,} documents where {announced}; the split would differ")

    def _batch(self, source: int, position: list[int], texts: list[str], row: int, seen: SeenDocuments) -> Batch:
        filled = [i for i, text in enumerate(texts) if text]
        digests = [content_hash(texts[i]) for i in filled]
        keys = SeenDocuments.keys(digests)
        new = seen.add(keys) if self.drop_duplicates else np.ones(len(keys), bool)
        kept = keys[new] if self.drop_duplicates else keys[:0]
        duplicates, empty = int((~new).sum()), len(texts) - len(filled)
        batch = Batch(source, position, {"train": [], "val": []}, kept, len(texts), duplicates, empty)
        for i, digest, keep in zip(filled, digests, new, strict=True):
            if keep:
                batch.texts["val" if self._is_validation(source, row + i, digest) else "train"].append(texts[i])
        return batch

    def _is_validation(self, source: int, row: int, digest: bytes) -> bool:
        if self.membership is None:
            return is_validation(digest, self.share) or digest == self.lowest_hash
        return row < len(self.membership[source]) and bool(self.membership[source][row])
