"""Generated pictures: unlimited, a pure function of (seed, index), with the labels that give a power law."""

import numpy as np
import pytest
from scipy import stats

from isoflop.data import open_source
from isoflop.data.sources.fractals import draw, orbits, zipf_probabilities

SHARES = zipf_probabilities(1000, 1.5)


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    indices = np.array([5, 2**40 - 1, 7, 123_456_789_012])
    pictures, labels = draw(indices, size=32, shares=SHARES)
    for k, index in enumerate(indices):
        alone, label = draw(np.array([index]), size=32, shares=SHARES)
        assert np.array_equal(alone[0], pictures[k])
        assert label[0] == labels[k]


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (64, 1), (32, 3)])
def test_pictures_have_the_promised_shape_and_are_neither_empty_nor_full(size: int, channels: int) -> None:
    pictures, _ = draw(np.arange(500), size=size, shares=SHARES, channels=channels)
    assert pictures.shape == (500, channels, size, size)
    filled = (pictures.max(axis=1) > 0).mean(axis=(1, 2))
    assert filled.min() > 0.01
    assert filled.max() < 0.9


def test_labels_follow_zipfs_law() -> None:
    _, labels = draw(np.arange(100_000), size=8, shares=SHARES)
    head = np.bincount(labels, minlength=1000)[:20]
    expected = 100_000 * SHARES[:20]
    rest = (100_000 - head.sum(), 100_000 - expected.sum())
    assert stats.chisquare([*head, rest[0]], [*expected, rest[1]]).pvalue > 1e-4


def test_more_categories_leave_the_first_ones_as_they_are() -> None:
    assert np.array_equal(orbits(10, seed=3), orbits(20, seed=3)[:10])


def test_categories_differ_and_seeds_give_other_categories() -> None:
    assert len({orbit.tobytes() for orbit in orbits(200, seed=0)}) == 200
    assert not np.array_equal(orbits(2, seed=0), orbits(2, seed=1))


def test_attractors_lie_in_the_unit_disc() -> None:
    assert np.abs(orbits(1000, seed=0)).max() <= 1 + 1e-6


def test_splits_share_no_picture() -> None:
    seen: set[bytes] = set()
    for split in ("train", "heldout", "test"):
        images, _ = open_source("fractals", split=split, image_size=32).read(np.arange(2000))  # type: ignore[arg-type]
        pictures = {image.numpy().tobytes() for image in images}
        assert not pictures & seen
        seen |= pictures


def test_the_task_is_learnable_and_categories_are_distinct() -> None:
    """The nearest class mean of the spectrum over rings, which no rotation changes, beats chance (5 %) by far."""
    shares = zipf_probabilities(20, 0.0)
    pictures, labels = draw(np.arange(4000), size=32, shares=shares)
    spectrum = np.log1p(np.abs(np.fft.fft2(pictures[:, 0].astype(np.float32)))).reshape(4000, -1)
    frequency = np.fft.fftfreq(32, 1 / 32)
    ring = np.hypot(frequency[:, None], frequency).astype(int).ravel()
    features = np.stack([spectrum[:, ring == r].mean(axis=1) for r in range(16)], axis=1)
    means = np.stack([features[:2000][labels[:2000] == c].mean(axis=0) for c in range(20)])
    predicted = ((features[2000:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (predicted == labels[2000:]).mean() > 0.3
