"""The sample order of a run: a pure function of (seed, position), with O(1) memory.

Position p of a run is in epoch p // N. Within an epoch, the samples 0 … N-1 are in the order of a keyed permutation.
Resuming needs no stored state, workers need no communication, and an epoch of four billion samples starts at once.

The permutation is a 6-round generalised Feistel network over a grid of about √N × √N values, with cycle walking
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): a value outside 0 … N-1 is encrypted again until it
is inside, which is rare, because the grid is at most one row too large. The round keys are *hashed* from (seed, epoch):
with keys such as seed + epoch, different seeds would share epochs.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import DataError

ALGORITHM = "feistel6-v1"
"""The name of this order. It is part of what must not change when a run resumes."""

_ROUNDS = 6
# a Feistel network over a smaller grid has too few permutations; walking a grid of 256 costs nothing
_MINIMUM_SIDE = 16
_LARGEST = 1 << 60
_CHUNK = 1 << 14  # positions at a time: the temporaries stay in the cache

_I64 = NDArray[np.int64]
_U32 = NDArray[np.uint32]
_MULTIPLY_1 = np.uint32(0x7FEB352D)
_MULTIPLY_2 = np.uint32(0x846CA68B)


def locate(positions: _I64, num_samples: int, seed: int) -> tuple[_I64, _I64]:
    """The (epochs, indices) of the samples at `positions`, both int64 of the same shape (n,).

    Each index 0 … num_samples-1 occurs exactly once among the positions e·num_samples … (e+1)·num_samples-1 of epoch e.
    Raises DataError for a negative position or an empty data set.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if num_samples < 1:
        raise DataError(f"an order needs at least one sample, not {num_samples}")
    if positions.size and int(positions.min()) < 0:
        raise DataError(f"position {int(positions.min())} is before the start of the run")
    epochs = positions // num_samples
    offsets = positions - epochs * num_samples
    return epochs, permute(offsets, num_samples, seed, epochs)


def permute(values: _I64, size: int, seed: int, epochs: _I64 | int = 0) -> _I64:
    """`values` in 0 … size-1 sent through the permutation that belongs to (seed, epoch), elementwise; shape (n,).

    `size` may be anything up to 2^60.
    """
    if size == 1:
        return np.zeros_like(values)
    if size > _LARGEST:
        raise DataError(f"an order of {size} samples is beyond the 2^60 that it is made for")
    permuted = np.empty_like(values)
    per_value = np.broadcast_to(np.asarray(epochs, dtype=np.int64), values.shape)
    for start in range(0, len(values), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        permuted[chunk] = _walk(values[chunk], size, _key_columns(seed, per_value[chunk]))
    return permuted


def _walk(values: _I64, size: int, keys: _U32) -> _I64:
    """Encrypts until every value is below `size`; `keys` is (rounds, 2, 1) for one epoch or (rounds, 2, n)."""
    low_bits = max(_MINIMUM_SIDE.bit_length() - 1, (size - 1).bit_length() // 2)
    rows = max(_MINIMUM_SIDE, -(-size >> low_bits))
    walked = _encrypt(values, rows, low_bits, keys)
    outside = np.flatnonzero(walked >= size)
    while outside.size:
        own_keys = keys if keys.shape[-1] == 1 else keys[..., outside]
        walked[outside] = _encrypt(walked[outside], rows, low_bits, own_keys)
        outside = outside[walked[outside] >= size]
    return walked


def _encrypt(values: _I64, rows: int, low_bits: int, keys: _U32) -> _I64:
    """A keyed bijection of 0 … rows·2^low_bits-1: row and column are shifted in turn, each by a hash of the other."""
    row = (values >> low_bits).astype(np.uint32)
    column = (values & ((1 << low_bits) - 1)).astype(np.uint32)
    column_shift = np.uint32(32 - low_bits)
    for round_index in range(0, _ROUNDS, 2):
        hashed = _round(column, keys[round_index]).astype(np.uint64)
        row += ((hashed * np.uint64(rows)) >> np.uint64(32)).astype(np.uint32)
        # modulo `rows`: below it, the unsigned difference wraps to a large one
        row = np.minimum(row, row - np.uint32(rows))
        column ^= _round(row, keys[round_index + 1]) >> column_shift
    return (row.astype(np.int64) << low_bits) | column


def _round(half: _U32, keys: _U32) -> _U32:
    """A hash of 32-bit words whose high bits are the good ones (multiply, fold, multiply)."""
    hashed: _U32 = half ^ keys[0]
    hashed *= _MULTIPLY_1
    hashed ^= hashed >> np.uint32(16)
    hashed += keys[1]
    hashed *= _MULTIPLY_2
    return hashed


def _key_columns(seed: int, epochs: _I64) -> _U32:
    """The round keys (rounds, 2, 1) if `epochs` (n,) are all the same, else (rounds, 2, n)."""
    first, last = int(epochs.min()), int(epochs.max())
    if first == last:
        return _round_keys(seed, first)[..., None]
    distinct, inverse = np.unique(epochs, return_inverse=True)
    columns: _U32 = np.stack([_round_keys(seed, int(epoch)) for epoch in distinct], axis=-1)
    own: _U32 = np.take(columns, inverse, axis=-1)
    return own


@lru_cache(maxsize=4096)
def _round_keys(seed: int, epoch: int) -> _U32:
    """Twelve 32-bit words (rounds, 2), hashed by BLAKE2b."""
    digest = hashlib.blake2b(f"{ALGORITHM} {seed} {epoch}".encode(), digest_size=_ROUNDS * 8).digest()
    keys: _U32 = np.frombuffer(digest, dtype="<u4").astype(np.uint32)
    return keys.reshape(_ROUNDS, 2)


# Numbers that depend on a key and nothing else: the only source of randomness in the data.
#
# A draw is a hash of (key, epoch, index, stream), so it can be made for any sample at any time, in any process, in any
# order. Everything works on whole batches: a hash costs about 5 ns.


U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_64_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_64_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: int | str) -> int:
    """A 64-bit key hashed (BLAKE2b) from numbers and words; ("a", 1) and ("a1",) give different keys."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(values: U64) -> U64:
    """A bijective scrambling of 64-bit words, elementwise: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _MULTIPLY_64_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MULTIPLY_64_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


def words(key: int, epochs: NDArray[np.int64] | int, indices: NDArray[np.int64], streams: int) -> U64:
    """Independent 64-bit words, shape (n, streams), for n samples given by `indices` (n,) in `epochs` (n,) or one
    epoch.
    """
    with np.errstate(over="ignore"):
        epoch_part = mix(np.asarray(epochs).astype(np.uint64) * _GOLDEN + np.uint64(key))
        sample_part = mix(np.asarray(indices).astype(np.uint64) * _MULTIPLY_64_2 + epoch_part)
        return mix(sample_part[:, None] + np.arange(1, streams + 1, dtype=np.uint64) * _GOLDEN)


def hashed(seeds: U64, counters: NDArray[np.int64]) -> U64:
    """A 64-bit word for each of the pairs of a seed and a counter, both (n,): noise that is made anywhere alike."""
    with np.errstate(over="ignore"):
        return mix(mix(seeds + _GOLDEN) + counters.astype(np.uint64) * _GOLDEN)


def uniforms(
    key: int, epochs: NDArray[np.int64] | int, indices: NDArray[np.int64], streams: int
) -> NDArray[np.float64]:
    """Independent numbers in [0, 1), shape (n, streams), with 53 random bits each; arguments as for `words`."""
    bits = words(key, epochs, indices, streams) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


# Orders built from the keyed permutation: plain, by windows of shards, repeated, mixed in exact proportions,
# class-balanced.
#
# Each is a pure function of (seed, position), like `order.locate`, and visits every (epoch, index) of a sample exactly
# once.


class Order(Protocol):
    """From positions of a run to samples."""

    sorts_batches: bool
    """Whether a batch is put into the order of storage before ranks share it, so that each reads few shards."""

    def locate(self, positions: _I64, seed: int) -> tuple[_I64, _I64]:
        """The (epochs, indices) of the samples at `positions` (n,)."""
        ...


class GlobalOrder:
    """Any sample may come next: for data that is cheap to read anywhere."""

    sorts_batches = False

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def locate(self, positions: _I64, seed: int) -> tuple[_I64, _I64]:
        """See `Order.locate`."""
        return locate(positions, self.num_samples, seed)


class WindowedOrder:
    """Shards in a keyed order; samples permuted within each window of `window` shards: for data that is far away.

    A reader that keeps `window` shards at hand fetches each shard once per epoch, and reads them one window after
    another. `shard_sizes` (S,) are the numbers of samples of consecutive shards. Memory: O(S).
    """

    sorts_batches = True

    def __init__(self, shard_sizes: _I64, window: int) -> None:
        if window < 1:
            raise DataError(f"a window needs at least one shard, not {window}")
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._total = int(self._sizes.sum())
        self._window = window
        self._last_layout: tuple[tuple[int, int], tuple[_I64, _I64]] | None = None

    def locate(self, positions: _I64, seed: int) -> tuple[_I64, _I64]:
        """See `Order.locate`."""
        if positions.size and int(positions.min()) < 0:
            raise DataError(f"position {int(positions.min())} is before the start of the run")
        epochs = positions // self._total
        offsets = positions - epochs * self._total
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            indices[mine] = self._locate_in_epoch(offsets[mine], int(epoch), seed)
        return epochs, indices

    def _locate_in_epoch(self, offsets: _I64, epoch: int, seed: int) -> _I64:
        shards, ends = self._layout(epoch, seed)
        window_ends = np.append(ends[self._window - 1 : -1 : self._window], ends[-1])
        windows = np.searchsorted(window_ends, offsets, side="right")
        shuffled = np.empty_like(offsets)
        for window in np.unique(windows):
            mine = windows == window
            start = int(window_ends[window - 1]) if window else 0
            size = int(window_ends[window]) - start
            key = derive_key("window", seed, int(window))
            shuffled[mine] = start + permute(offsets[mine] - start, size, key, epoch)
        place = np.searchsorted(ends, shuffled, side="right")
        before = np.where(place > 0, ends[place - 1], 0)
        return np.asarray(self._starts[shards[place]] + shuffled - before)

    def _layout(self, epoch: int, seed: int) -> tuple[_I64, _I64]:
        """The shards in this epoch's order, and where each ends; kept for the epoch that is being read."""
        if self._last_layout is None or self._last_layout[0] != (epoch, seed):
            count = len(self._sizes)
            shards = permute(np.arange(count, dtype=np.int64), count, derive_key("shards", seed), epoch)
            self._last_layout = ((epoch, seed), (shards, np.cumsum(self._sizes[shards])))
        return self._last_layout[1]


class RepeatedOrder:
    """Repeated augmentation: each sample comes `times` times, augmented differently (arXiv 1901.09335).

    Two samples take turns, a b a b a b, so that Mixup and CutMix, which mix neighbours, do not mix one with itself.
    Copy c of a sample in epoch e counts as epoch e·times + c, so that each copy draws its own augmentation.
    """

    sorts_batches = False

    def __init__(self, order: Order, times: int) -> None:
        if times < 1:
            raise DataError(f"repeat = {times}: samples are repeated at least once")
        self._order, self._times = order, times

    def locate(self, positions: _I64, seed: int) -> tuple[_I64, _I64]:
        """See `Order.locate`."""
        pairs, places = np.divmod(positions, 2 * self._times)
        epochs, indices = self._order.locate(2 * pairs + places % 2, seed)
        return epochs * self._times + places // 2, indices


class MixtureOrder:
    """Several orders at once, in exact proportions: of any W consecutive positions from a multiple of W on, w_s are
    of part s.

    `weights` are positive integers of sum W (after division by their greatest common divisor); part s has its own
    epochs, and its indices are shifted by `offsets[s]`.
    """

    sorts_batches = False

    def __init__(self, parts: Sequence[Order], weights: Sequence[int], offsets: Sequence[int]) -> None:
        if min(weights) < 1:
            raise DataError("the weights of a mixture must be positive")
        divisor = math.gcd(*weights)
        self._parts, self._offsets = list(parts), list(offsets)
        self._weights = np.asarray(weights, dtype=np.int64) // divisor
        self._ends = np.cumsum(self._weights)

    def locate(self, positions: _I64, seed: int) -> tuple[_I64, _I64]:
        """See `Order.locate`."""
        total = int(self._ends[-1])
        blocks = positions // total
        slots = permute(positions - blocks * total, total, derive_key("mixture", seed), blocks)
        parts = np.searchsorted(self._ends, slots, side="right")
        own = blocks * self._weights[parts] + slots - (self._ends - self._weights)[parts]
        epochs, indices = np.empty_like(own), np.empty_like(own)
        for part in np.unique(parts):
            mine = parts == part
            # Neighbouring seeds must not share a part's order, hence the hash.
            epochs[mine], indices[mine] = self._parts[part].locate(own[mine], derive_key("part", seed, int(part)))
            indices[mine] += self._offsets[part]
        return epochs, indices


class BalancedOrder:
    """Every class equally often: of any C consecutive positions from a multiple of C on, one is of each class.

    `labels` (N,) may leave classes out; a class starts its next epoch when its samples are used up.
    """

    sorts_batches = False

    def __init__(self, labels: _I64) -> None:
        self._by_class = np.argsort(labels, kind="stable")
        _, counts = np.unique(labels, return_counts=True)
        starts = np.cumsum(counts) - counts
        self._mixture = MixtureOrder([GlobalOrder(int(c)) for c in counts], [1] * len(counts), starts.tolist())

    def locate(self, positions: _I64, seed: int) -> tuple[_I64, _I64]:
        """See `Order.locate`."""
        epochs, places = self._mixture.locate(positions, seed)
        return epochs, self._by_class[places]
