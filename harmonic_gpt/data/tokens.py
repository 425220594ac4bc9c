"""Token files to batches. Which tokens go where is a pure function of (seed, step): nothing to save, nothing to
replay."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from harmonic_gpt.data.prepare import MANIFEST, MANIFEST_VERSION
from harmonic_gpt.data.shards import SPLITS
from harmonic_gpt.data.tokenizer import tokenizer_hash
from harmonic_gpt.errors import InputError

CHECK_TOKENS = 2**22
NANOGPT_VOCAB_SIZE = 50257  # nanoGPT's .bin files say nothing of themselves: uint16 ids of GPT-2's BPE


class Tokens:
    """One split of a token folder: a long line of ids over one or several files.

    A read opens the file, takes its window and closes it. A memory map would be a little shorter, but every page that
    it touched
    counts as resident memory: over an epoch, the whole corpus.
    """

    def __init__(self, files: list[Path], dtype: np.dtype, vocab_size: int):
        self.files, self.dtype, self.vocab_size = files, dtype, vocab_size
        self._starts = np.cumsum([0] + [path.stat().st_size // dtype.itemsize for path in files])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """ids[start : start + length] as int64. Raises InputError if one is outside the vocabulary."""
        parts = [part.astype(np.int64) for part in self._windows(start, length)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _windows(self, start: int, length: int) -> Iterator[np.ndarray]:
        end = min(start + length, len(self))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for i in range(first, len(self.files)):
            if start >= end:
                return
            offset = start - int(self._starts[i])
            count = min(end, int(self._starts[i + 1])) - start
            part = np.fromfile(self.files[i], self.dtype, count, offset=offset * self.dtype.itemsize)
            if len(part) < count:
                raise InputError(f"{self.files[i]} has become shorter since it was opened; prepare the folder again")
            if count and int(part.max()) >= self.vocab_size:
                where = offset + int(np.argmax(part >= self.vocab_size))
                raise InputError(
                    f"{self.files[i]}: token id {int(part[where - offset])} at position {where} is beyond the vocabulary of "
                    f"{self.vocab_size}; the file was made with another tokenizer, or is damaged"
                )
            yield part
            start += count

    def check(self, sha256: list[str]) -> None:
        """Read all of it. Raises InputError if an id is outside the vocabulary, with file and position, or a file is
        not as it was
        written: its SHA-256, in the order of `files`; an empty list where they are not known."""
        if self.vocab_size > np.iinfo(self.dtype).max and not sha256:
            return
        hashes, place = [hashlib.sha256() for _ in sha256], 0
        bar = tqdm(
            desc="checking tokens",
            total=len(self),
            unit=" tokens",
            unit_scale=True,
            disable=None if len(self) > 10**9 else True,
        )
        with bar:
            for start in range(0, len(self), CHECK_TOKENS):
                for window in self._windows(start, CHECK_TOKENS):
                    if hashes:
                        hashes[int(np.searchsorted(self._starts, place, side="right")) - 1].update(window.data)
                    place += len(window)
                    bar.update(len(window))
        for file, computed, expected in zip(self.files, hashes, sha256, strict=bool(sha256)):
            if computed.hexdigest() != expected:
                raise InputError(
                    f"{file}: its SHA-256 is not the one in the manifest; it is damaged: prepare the folder again"
                )


@dataclass
class TokenFolder:
    """A folder of token files. `manifest` is None for nanoGPT's headless ones."""

    path: Path
    vocab_size: int
    splits: dict[str, Tokens]
    manifest: dict | None
    _checked: set[str] = field(default_factory=set)

    @property
    def tokenizer_path(self) -> Path | None:
        path = self.path / "tokenizer"
        return path if path.is_dir() else None

    def tokens(self, split: str) -> Tokens:
        """A split. The first time all of it is read: its ids must be of the vocabulary, its files those of the
        manifest.

        About a second a GB (docs/data.md).
        """
        if split not in self.splits:
            raise InputError(f"{self.path}: no {split} tokens; it has {', '.join(self.splits)}")
        if split not in self._checked:
            self.splits[split].check(
                [file["sha256"] for file in self.manifest["splits"][split]["files"]] if self.manifest else []
            )
            self._checked.add(split)
        return self.splits[split]

    def sources(self, split: str) -> dict[str, Tokens]:
        """The split's tokens by source. Empty for nanoGPT's files, which do not say."""
        tokens = self.tokens(split)
        names = [file["source"] for file in self.manifest["splits"][split]["files"]] if self.manifest else []
        files = {
            name: [file for file, source in zip(tokens.files, names, strict=True) if source == name] for name in names
        }
        return {name: Tokens(paths, tokens.dtype, tokens.vocab_size) for name, paths in files.items()}

    def fingerprint(self) -> dict:
        """What identifies the contents, wherever the folder lies: hashes of the files, or sizes where there is no
        manifest."""
        if self.manifest is None:
            files = {name: [path.stat().st_size for path in tokens.files] for name, tokens in self.splits.items()}
            return {"vocab_size": self.vocab_size, "tokenizer": None, "files": files}
        files = {name: [file["sha256"] for file in split["files"]] for name, split in self.manifest["splits"].items()}
        return {"vocab_size": self.vocab_size, "tokenizer": self.manifest["tokenizer"]["sha256"], "files": files}

    def check_request(self, request: dict) -> None:
        """Raises InputError unless `prepare` was asked for just this."""
        if self.manifest is None:
            return
        made = self.manifest["request"]
        differing = [
            f"{key}: {made.get(key)!r} there, {value!r} asked for"
            for key, value in request.items()
            if made.get(key) != value
        ]
        if differing:
            raise InputError(
                f"{self.path} was prepared from something else ({'; '.join(differing)}); choose another data.dir, or remove that folder"
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
                f"{self.path} was made with the tokenizer {made['name']!r} ({made['sha256'][:12]}), not with this one ({given[:12]}): "
                "ids would mean other tokens"
            )


def open_token_folder(path: str | Path, vocab_size: int | None = None) -> TokenFolder:
    """Open what `prepare` wrote, or a folder with nanoGPT's train.bin and val.bin (vocab_size: default GPT-2's 50257).

    Raises InputError for a missing folder, an unknown manifest, or a file whose size is not what the manifest says. The
    ids of a split are checked when it is taken (`TokenFolder.tokens`).
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f"no token folder at {path}; make one with: python -m harmonic_gpt prepare --source ... --out {path}"
        )
    if (path / MANIFEST).exists():
        return _open_manifest(path)
    files = {name: path / f"{name}.bin" for name in SPLITS if (path / f"{name}.bin").is_file()}
    if not files:
        raise InputError(f"{path}: neither {MANIFEST} nor nanoGPT's train.bin and val.bin")
    vocab_size = vocab_size or NANOGPT_VOCAB_SIZE
    for file in files.values():
        if file.stat().st_size == 0 or file.stat().st_size % 2:
            raise InputError(f"{file}: expected uint16 token ids, got {file.stat().st_size} bytes")
    splits = {name: Tokens([file], np.dtype("<u2"), vocab_size) for name, file in files.items()}
    return TokenFolder(path, vocab_size, splits, None)


def _open_manifest(path: Path) -> TokenFolder:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != MANIFEST_VERSION:
            raise InputError(
                f"{path / MANIFEST}: version {manifest['version']}, this program reads {MANIFEST_VERSION}; prepare it again"
            )
        dtype: np.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[manifest["dtype"]])
        vocab_size = int(manifest["vocab_size"])
        for section, key in (("tokenizer", "sha256"), ("tokenizer", "name"), ("request", "source")):
            manifest[section][key]  # used later: a KeyError now, not then
        splits = {}
        for name, split in manifest["splits"].items():
            files = []
            for entry in split["files"]:
                file = path / Path(entry["name"]).name
                expected = int(entry["tokens"]) * dtype.itemsize
                entry["source"], entry["sha256"]
                size = file.stat().st_size if file.is_file() else None
                if size != expected:
                    found = "it is missing" if size is None else f"it has {size}"
                    raise InputError(f"{file}: the manifest says {expected} bytes, {found}; prepare the folder again")
                files.append(file)
            splits[name] = Tokens(files, dtype, vocab_size)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path / MANIFEST} is not a manifest: {type(error).__name__} {error}") from None
    return TokenFolder(path, vocab_size, splits, manifest)


class Permutation:
    """A pseudo-random permutation of range(n) by formula, in O(1) memory: a Feistel network over the next power of
    four, walked until it lands inside (cycle walking; Black and Rogaway 2002, "Ciphers with Arbitrary Finite
    Domains")."""

    ROUNDS = 6

    def __init__(self, n: int, *seed: int):
        self.n = n
        self.half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self.mask = np.uint64((1 << int(self.half_bits)) - 1)
        self.keys = np.random.SeedSequence(seed).generate_state(self.ROUNDS, np.uint64)

    def _once(self, index: np.ndarray) -> np.ndarray:
        left, right = index >> self.half_bits, index & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mix(right ^ key) & self.mask)
        return left << self.half_bits | right

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Images of int64 indices in [0, n), same shape."""
        image = self._once(index.astype(np.uint64))
        while (outside := image >= self.n).any():
            image[outside] = self._once(image[outside])
        return image.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return value ^ value >> np.uint64(31)


class Sampler:
    """Global batches of training blocks, without replacement within an epoch.

    The tokens are cut into blocks at an offset that changes with the epoch, so that block boundaries move; an epoch
    visits every block once, in an order that is a permutation by formula. Batch `step` of `batch_size` blocks is the
    same whatever the
    number of ranks: they take slices of it.
    """

    def __init__(self, tokens: Tokens, block_size: int, batch_size: int, seed: int):
        if len(tokens) < block_size + 1:
            raise InputError(
                f"{tokens.files[0].parent}: {len(tokens)} training tokens are less than one block of {block_size} and its last target; "
                "use a smaller n_positions, or more text"
            )
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.blocks_per_epoch = max(1, (len(tokens) - block_size) // block_size)

    def _starts(self, samples: np.ndarray) -> np.ndarray:
        """First token of each sample, counted over all epochs; (n,) int64."""
        epochs, positions = np.divmod(samples, self.blocks_per_epoch)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            slack = len(self.tokens) - 1 - self.blocks_per_epoch * self.block_size
            offset = np.random.default_rng((self.seed, int(epoch))).integers(min(slack, self.block_size - 1) + 1)
            order = Permutation(self.blocks_per_epoch, self.seed, int(epoch))
            starts[here] = order(positions[here]) * self.block_size + offset
        return starts

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """This rank's share of batch `step`: (batch_size / world_size, block_size + 1) int64; targets are shifted by
        one."""
        return self.read(_share_of_batch(step, self.batch_size, rank, world_size))

    def read(self, samples: np.ndarray) -> np.ndarray:
        """The samples of these numbers, counted over all epochs: (n, block_size + 1) int64."""
        return np.stack([self.tokens.read(int(start), self.block_size + 1) for start in self._starts(samples)])


class MixtureSampler:
    """Batches from several sources in given shares, each without replacement within its own epochs.

    Which source sample k comes from is read off a cycle of SLOTS slots, in which each source has its share, evenly
    spread. So the shares are exact to 1 / SLOTS, and nothing has to be saved.
    """

    SLOTS = 2**14

    def __init__(self, folder: TokenFolder, weights: dict[str, float], block_size: int, batch_size: int, seed: int):
        sources = folder.sources("train")
        if set(weights) != set(sources):
            raise InputError(
                f"data.weights must name the sources of {folder.path}: {sorted(sources)}, got {sorted(weights)}"
            )
        self.tokens, self.batch_size = folder.tokens("train"), batch_size
        self.samplers = [Sampler(tokens, block_size, batch_size, seed) for tokens in sources.values()]
        shares = np.array([weights[name] for name in sources]) / sum(weights.values())
        self.slots = np.floor(shares * self.SLOTS).astype(np.int64)
        self.slots[np.argsort(self.slots - shares * self.SLOTS, kind="stable")[: self.SLOTS - self.slots.sum()]] += 1
        if not self.slots.all():
            raise InputError(f"data.weights: a source's share must be at least 1/{self.SLOTS}, got {weights}")
        source = np.repeat(np.arange(len(sources)), self.slots)
        turn = np.concatenate([np.arange(n) for n in self.slots])
        order = np.argsort((turn + 0.5) / self.slots[source], kind="stable")
        self._source, self._turn = source[order], turn[order]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """As `Sampler.batch`."""
        cycles, slots = np.divmod(_share_of_batch(step, self.batch_size, rank, world_size), self.SLOTS)
        sources = self._source[slots]
        samples = cycles * self.slots[sources] + self._turn[slots]
        blocks = np.empty((len(samples), self.samplers[0].block_size + 1), np.int64)
        for index in np.unique(sources):
            blocks[sources == index] = self.samplers[index].read(samples[sources == index])
        return blocks


def training_sampler(
    folder: TokenFolder, weights: dict[str, float] | None, block_size: int, batch_size: int, seed: int
) -> Sampler | MixtureSampler:
    """Batches of the folder's training tokens: all alike, or its sources in the shares that `weights` gives."""
    if weights is None:
        return Sampler(folder.tokens("train"), block_size, batch_size, seed)
    return MixtureSampler(folder, weights, block_size, batch_size, seed)


def _share_of_batch(step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    assert batch_size % world_size == 0
    share = batch_size // world_size
    return np.arange(share, dtype=np.int64) + step * batch_size + rank * share
