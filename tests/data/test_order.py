"""The sample order: every sample once per epoch, unchanged by restarts, and not to be told from chance."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isoflop.data.order import locate, permute
from isoflop.errors import DataError

GOLDEN_1000 = [210, 961, 345, 933, 278, 853, 886, 912]
GOLDEN_4E9 = [456302494, 3362698397, 1007672803, 3531421742]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 255, 256, 257, 1797, 4096, 50_000, 65_537])
def test_every_sample_comes_exactly_once_per_epoch(size: int) -> None:
    epochs, indices = locate(np.arange(3 * size), size, seed=5)
    for epoch in range(3):
        assert np.array_equal(np.sort(indices[epochs == epoch]), np.arange(size))


@pytest.mark.parametrize("size", [2**31 + 11, 4 * 10**9, 2**40, 2**40 + 1, 10**15])
def test_large_orders_have_no_repeats_and_stay_in_range(size: int) -> None:
    rng = np.random.default_rng(0)
    values = np.unique(rng.integers(0, size, 200_000))
    permuted = permute(values, size, seed=1)
    assert len(np.unique(permuted)) == len(values)
    assert permuted.min() >= 0
    assert permuted.max() < size


@settings(max_examples=100)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 10_000), st.integers(1, 300))
def test_the_order_does_not_depend_on_how_it_is_asked_for(size: int, seed: int, start: int, length: int) -> None:
    positions = np.arange(start, start + length)
    epochs, indices = locate(positions, size, seed)
    shuffled = np.random.default_rng(0).permutation(length)
    epochs_again, indices_again = locate(positions[shuffled], size, seed)
    assert np.array_equal(epochs[shuffled], epochs_again)
    assert np.array_equal(indices[shuffled], indices_again)
    assert int(locate(positions[:1], size, seed)[1][0]) == indices[0]


@pytest.mark.parametrize("size", [1_280_000, 4 * 10**9])
@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_in_the_order_are_unrelated(size: int, seed: int) -> None:
    """Lag-1 correlation and the spacings of neighbours are at the noise level of independent uniform draws."""
    count = 1_000_000
    _, indices = locate(np.arange(count), size, seed)
    x = indices / size
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / np.sqrt(count)
    spacings = np.bincount(((x[1:] - x[:-1]) % 1 * 256).astype(int), minlength=256)
    assert stats.chisquare(spacings).pvalue > 1e-4
    assert stats.chisquare(np.histogram(x[: count // 10], bins=256, range=(0, 1))[0]).pvalue > 1e-4


def test_small_permutations_are_all_about_equally_likely() -> None:
    """Over many seeds, the 24 orders of four samples occur equally often (chi-square)."""
    _, indices = locate(np.arange(4 * 20_000), 4, seed=3)
    orders = indices.reshape(-1, 4) @ np.array([64, 16, 4, 1])
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


def test_seeds_do_not_repeat_each_others_epochs() -> None:
    """With keys such as seed + epoch, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    size = 1000
    orders = {(s, e): permute(np.arange(size), size, s, e).tobytes() for s in range(8) for e in range(8)}
    assert len(set(orders.values())) == 64


def test_the_order_is_the_one_that_was_published() -> None:
    """Golden values: a changed order would silently change every resumed run, so it needs a new ALGORITHM name."""
    assert locate(np.arange(8), 1000, seed=0)[1].tolist() == GOLDEN_1000
    assert locate(np.arange(4), 4 * 10**9, seed=7)[1].tolist() == GOLDEN_4E9


def test_four_billion_samples_start_in_a_few_megabytes() -> None:
    tracemalloc.start()
    locate(np.arange(10**6 * 4096, 10**6 * 4096 + 4096), 4 * 10**9, seed=9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_an_empty_or_negative_order_is_refused() -> None:
    with pytest.raises(DataError, match="at least one sample"):
        locate(np.arange(3), 0, seed=0)
    with pytest.raises(DataError, match="before the start"):
        locate(np.arange(-1, 3), 10, seed=0)
