"""Which tokens a batch holds: a pure function of (seed, step), so there is nothing to save and nothing to replay."""

import numpy as np

from harmonic_gpt.data.tokens import TokenFolder, Tokens
from harmonic_gpt.errors import InputError


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
    """The finalizer of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return value ^ value >> np.uint64(31)


class Sampler:
    """Global batches of training blocks, without replacement within an epoch.

    The tokens are cut into blocks at an offset that changes with the epoch, so that block boundaries move; an epoch
    visits every block once, in an order that is a permutation by formula. Batch `step` of `batch_size` blocks is the
    same whatever the number of ranks: they take slices of it.
    """

    def __init__(self, tokens: Tokens, block_size: int, batch_size: int, seed: int):
        if len(tokens) < block_size + 1:
            where = f"{tokens.files[0].parent}: " if tokens.files else ""  # a joined folder's split may have no file
            raise InputError(
                f"{where}{len(tokens)} training tokens are less than one block of {block_size} and "
                "its last target; use a smaller model.n_positions, or more text"
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
