"""Orders built from the keyed permutation: plain, by windows of shards, repeated, mixed in exact proportions,
class-balanced.

Each is a pure function of (seed, position), like `order.locate`, and visits every (epoch, index) of a sample exactly
once.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.data.keyed import derive_key
from isoflop.data.order import locate, permute
from isoflop.errors import DataError

_I64 = NDArray[np.int64]


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
