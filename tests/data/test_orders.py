"""Windows, repeats, mixtures and balance: pure functions of the position that miss nothing and repeat nothing."""

import numpy as np
import pytest

from isoflop.data.order import BalancedOrder, GlobalOrder, MixtureOrder, Order, RepeatedOrder, WindowedOrder
from isoflop.errors import DataError

SHARDS = np.array([100, 30, 0, 77, 100, 1, 100, 92])
LABELS = np.array([0] * 50 + [1] * 5 + [3] * 13)
ORDERS: dict[str, tuple[Order, int]] = {
    "global": (GlobalOrder(500), 500),
    "windows of 1": (WindowedOrder(SHARDS, 1), 500),
    "windows of 3": (WindowedOrder(SHARDS, 3), 500),
    "windows of 100": (WindowedOrder(SHARDS, 100), 500),
}


@pytest.mark.parametrize("name", ORDERS)
def test_every_sample_comes_exactly_once_per_epoch(name: str) -> None:
    order, size = ORDERS[name]
    epochs, indices = order.locate(np.arange(4 * size), seed=3)
    assert np.array_equal(epochs, np.repeat(np.arange(4), size))
    for epoch in range(4):
        assert np.array_equal(np.sort(indices[epochs == epoch]), np.arange(size))


@pytest.mark.parametrize(
    "order",
    [
        WindowedOrder(SHARDS, 3),
        RepeatedOrder(GlobalOrder(50), 3),
        MixtureOrder([GlobalOrder(20), GlobalOrder(7)], [3, 2], [0, 20]),
        BalancedOrder(LABELS),
    ],
    ids=lambda order: type(order).__name__,
)
def test_the_order_does_not_depend_on_how_it_is_asked_for(order: Order) -> None:
    positions = np.arange(700)
    epochs, indices = order.locate(positions, seed=1)
    shuffled = np.random.default_rng(0).permutation(700)
    again = order.locate(positions[shuffled], seed=1)
    assert np.array_equal(again[0], epochs[shuffled])
    assert np.array_equal(again[1], indices[shuffled])
    assert not np.array_equal(order.locate(positions, seed=2)[1], indices)


def test_a_window_touches_few_shards_and_each_shard_once() -> None:
    """A reader that keeps three shards fetches each of them once per epoch."""
    sizes = np.full(20, 100)
    _, indices = WindowedOrder(sizes, 3).locate(np.arange(2000), seed=0)
    shards = indices // 100
    for start in range(0, 2000, 300):
        assert len(set(shards[start : start + 300].tolist())) <= 3
    first_seen = [int(np.flatnonzero(shards == s)[0]) // 300 for s in range(20)]
    last_seen = [int(np.flatnonzero(shards == s)[-1]) // 300 for s in range(20)]
    assert first_seen == last_seen
    assert np.abs(np.diff(indices[:300])).mean() > 50  # shuffled, not read straight through


def test_windows_are_shuffled_anew_in_each_epoch() -> None:
    _, indices = WindowedOrder(SHARDS, 3).locate(np.arange(1000), seed=0)
    assert not np.array_equal(indices[:500], indices[500:])


def test_repeats_come_close_together_and_count_as_epochs_of_their_own() -> None:
    epochs, indices = RepeatedOrder(GlobalOrder(10), 3).locate(np.arange(60), seed=0)
    groups = indices.reshape(-1, 3, 2)
    assert (groups == groups[:, :1]).all()
    assert (indices[::2] != indices[1::2]).all()  # neighbours, which Mixup mixes
    pairs = set(zip(epochs.tolist(), indices.tolist(), strict=True))
    assert pairs == {(epoch, index) for epoch in range(6) for index in range(10)}


def test_a_mixture_keeps_its_proportions_exactly() -> None:
    order = MixtureOrder([GlobalOrder(1000), GlobalOrder(30), GlobalOrder(7)], [6, 3, 1], [0, 1000, 1030])
    epochs, indices = order.locate(np.arange(5000), seed=0)
    parts = np.searchsorted([1000, 1030, 1037], indices, side="right")
    assert np.array_equal(np.bincount(parts), [3000, 1500, 500])
    for start in range(0, 5000, 10):  # in every block of ten, not only on the whole
        assert np.array_equal(np.bincount(parts[start : start + 10], minlength=3), [6, 3, 1])
    small = indices[parts == 2].reshape(-1)[:70].reshape(10, 7)
    for row in small:  # each source goes through its own epochs
        assert np.array_equal(np.sort(row), np.arange(1030, 1037))
    assert epochs[parts == 0].max() == 2


def test_balance_shows_every_class_equally_often_and_misses_no_sample() -> None:
    epochs, indices = BalancedOrder(LABELS).locate(np.arange(150), seed=0)
    classes = LABELS[indices].reshape(-1, 3)
    assert np.array_equal(np.sort(classes, axis=1), np.tile([0, 1, 3], (50, 1)))
    assert np.array_equal(np.sort(indices[LABELS[indices] == 0]), np.arange(50))
    assert epochs[LABELS[indices] == 1].max() == 9


def test_impossible_orders_are_refused() -> None:
    with pytest.raises(DataError, match="at least one shard"):
        WindowedOrder(SHARDS, 0)
    with pytest.raises(DataError, match="at least once"):
        RepeatedOrder(GlobalOrder(3), 0)
    with pytest.raises(DataError, match="must be positive"):
        MixtureOrder([GlobalOrder(3)], [0], [0])
