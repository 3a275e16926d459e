"""How a curve ends, told from halfway: what was planted is found, and a probability is what it says."""

import math

import numpy as np
import pytest

from isoflop import laws
from isoflop.errors import LawError


def planted(count: int, rng: np.random.Generator, noise: float = 0.05) -> tuple[np.ndarray, ...]:
    """Halfway losses, two features, and ends: 0.7 of the logarithm, less at high values of the first feature."""
    features = rng.uniform(-1, 1, (count, 2))
    halfway = np.exp(0.6 + 0.2 * rng.standard_normal(count))
    ends = np.exp(0.1 + 0.7 * np.log(halfway) - 0.08 * features[:, 0] + noise * rng.standard_normal(count))
    return halfway, features, ends


def test_the_planted_line_and_noise_are_found() -> None:
    halfway, features, ends = planted(2000, np.random.default_rng(0))
    fit = laws.fit_curve_ends(halfway, features, ends)
    offset, slope = fit.line((0.5, 0.0))
    assert slope == pytest.approx(0.7, abs=0.03)
    assert offset == pytest.approx(0.1 - 0.04, abs=0.02)
    assert fit.noise == pytest.approx(0.05, rel=0.05)
    assert fit.predict(2.0, (0.5, 0.0))[0][0] == pytest.approx(offset + slope * math.log(2.0))


@pytest.mark.parametrize("count", [12, 40])
def test_what_is_said_to_happen_in_so_many_cases_does(count: int) -> None:
    """Probabilities of the next run's end, of 400 families: as many fall below 5, 50 and 95 % as should."""
    rng = np.random.default_rng(count)
    found = []
    for _ in range(400):
        halfway, features, ends = planted(count + 1, rng)
        fit = laws.fit_curve_ends(halfway[:-1], features[:-1], ends[:-1])
        found.append(fit.probability_below(ends[-1], halfway[-1], tuple(features[-1]))[0])
    for level in (0.05, 0.5, 0.95):
        assert np.mean(np.array(found) < level) == pytest.approx(level, abs=0.05)


def test_a_worse_middle_makes_a_good_end_less_probable() -> None:
    fit = laws.fit_curve_ends(*planted(30, np.random.default_rng(1)))
    chances = fit.probability_below(1.5, np.linspace(1.5, 4.0, 50), (0.0, 0.0))
    assert (np.diff(chances) < 0).all()


def test_too_few_curves_and_impossible_losses_are_refused() -> None:
    halfway, features, ends = planted(7, np.random.default_rng(0))
    with pytest.raises(LawError, match="7 learning curves are too few"):
        laws.fit_curve_ends(halfway, features, ends)
    halfway, features, ends = planted(12, np.random.default_rng(0))
    ends[3] = math.inf
    with pytest.raises(LawError, match="positive and finite"):
        laws.fit_curve_ends(halfway, features, ends)
