"""The law of labels: planted lines and crossings are found, with intervals that hold them as often as they say."""

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws.labels import LabelsLaw, fit_labels, labels_crossover

IMAGES = [500.0, 1000.0, 2000.0]


def planted(level: float, slope: float, noise: float, rng: np.random.Generator) -> LabelsLaw:
    loss = np.exp(level - slope * np.log(np.asarray(IMAGES) / 1000) + noise * rng.standard_normal(3))
    return fit_labels(IMAGES, loss.tolist())


def test_an_exact_power_law_is_found() -> None:
    law = planted(0.2, 0.3, 0.0, np.random.default_rng(0))
    assert law.predict([4000.0])[0] == pytest.approx(np.exp(0.2) * 4**-0.3)
    ratio, (low, high) = law.twice()
    assert ratio == pytest.approx(2**-0.3)
    assert low < ratio < high
    assert law.images == pytest.approx((500, 2000))


def test_intervals_hold_what_was_planted_as_often_as_they_say() -> None:
    """Scratch (steep) overtakes fine-tuning (flat) at 3,000 images."""
    rng = np.random.default_rng(1)
    twice, crossed, found = 0, 0, 0
    for _ in range(100):
        flat, steep = planted(0.0, 0.1, 0.03, rng), planted(0.3 * np.log(3.0), 0.4, 0.03, rng)
        low, high = flat.twice()[1]
        twice += low < 2**-0.1 < high
        crossover = labels_crossover("flat", "steep", flat, steep)
        if crossover is None:
            continue
        found += 1
        assert (crossover.earlier, crossover.later) == ("flat", "steep")
        crossed += crossover.interval[0] < 3000 < crossover.interval[1]
    assert found > 90
    assert 0.83 < twice / 100 < 0.97
    assert 0.83 < crossed / found < 0.98


def test_the_order_of_the_families_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    flat, steep = planted(0.0, 0.1, 0.0, rng), planted(0.3 * np.log(3.0), 0.4, 0.0, rng)
    one, other = labels_crossover("flat", "steep", flat, steep), labels_crossover("steep", "flat", steep, flat)
    assert one is not None
    assert other is not None
    assert (one.earlier, one.later) == (other.earlier, other.later) == ("flat", "steep")
    assert one.images == pytest.approx(3000)
    assert one.interval == pytest.approx(other.interval, rel=0.05)
    assert one.searched == pytest.approx((125, 8000))


def test_laws_that_do_not_cross_have_no_crossover() -> None:
    rng = np.random.default_rng(3)
    assert labels_crossover("a", "b", planted(0.0, 0.1, 0.0, rng), planted(1.0, 0.1, 0.0, rng)) is None
    assert labels_crossover("a", "b", planted(0.0, 0.1, 0.0, rng), planted(5.0, 0.2, 0.0, rng)) is None


def test_two_numbers_of_images_are_too_few() -> None:
    with pytest.raises(LawError, match="needs three numbers of images, and these runs have 2"):
        fit_labels([500, 500, 1000], [1.0, 1.1, 0.9])
