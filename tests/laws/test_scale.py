"""Tables that are larger or odder than ours: rows are averaged where they abound, and one bad group spoils no other."""

from pathlib import Path

import numpy as np
import pytest

from isoflop.laws import fit_size_data, fit_table, markdown
from isoflop.laws.size_data_fit import MOST, thinned

TRUTH = (0.5, 40.0, 60.0, 0.22, 0.28)


def runs(count: int, seed: int = 0, repeated: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of a planted law with 2 % of noise, every fiftieth of which went wrong."""
    rng = np.random.default_rng(seed)
    n, d = (np.exp(rng.uniform(*np.log(ends), count)) for ends in ((1e8, 1e10), (1e6, 1e9)))
    if repeated:
        n, d = rng.choice(np.geomspace(1e8, 1e10, 6), count), rng.choice(np.geomspace(1e6, 1e9, 8), count)
    e, a, b, alpha, beta = TRUTH
    loss = (e + a * n**-alpha + b * d**-beta) * np.exp(0.02 * rng.standard_normal(count))
    loss[::50] *= 3.0
    return n, d, loss


@pytest.mark.parametrize("repeated", [False, True])
def test_a_large_table_is_averaged_and_finds_the_planted_law_whatever_its_order(repeated: bool) -> None:
    n, d, loss = runs(5000, repeated=repeated)
    fresh = np.full_like(d, np.inf)
    points = thinned(np.log(n), np.log(d), fresh, np.log(loss))
    assert points.z.size <= MOST
    assert points.rows == 5000
    law = fit_size_data(n, d, loss, bootstrap=20)
    e, a, b, alpha, beta = TRUTH
    assert law.predict(1e9, 1e8) == pytest.approx(e + a * 1e9**-alpha + b * 1e8**-beta, rel=0.004)
    assert law.noise == pytest.approx(0.02, rel=0.25)
    for name, value in (("alpha", alpha), ("beta", beta)):
        assert law.exponent_intervals[name][0] < value < law.exponent_intervals[name][1]
    order = np.random.default_rng(1).permutation(5000)
    other = thinned(*(np.log(column[order]) for column in (n, d, fresh, loss)))
    for name in ("x", "y", "z", "weight", "spread"):
        np.testing.assert_array_equal(getattr(points, name), getattr(other, name))


def test_a_group_that_is_too_small_is_left_out_with_the_reason_and_the_others_are_fitted() -> None:
    n, d, loss = runs(40, repeated=True)
    columns = {
        "n": [f"{v:.9g}" for v in n], "d": [f"{v:.9g}" for v in d], "loss": [f"{v:.9g}" for v in loss],
        "by": ["small"] * 3 + ["large"] * 37,
    }  # fmt: skip
    fit = fit_table(columns, x=("n", "d"), y="loss", by="by", budget=1e18)
    small, large = fit.groups
    assert (small.size_data, large.size_data is None) == (None, False)
    assert "3 runs are too few" in small.refusal
    assert "3 runs are too few" in markdown(fit)


def test_an_interval_contains_its_estimate() -> None:
    """245 runs of arXiv 2203.15556 as digitised in arXiv 2404.10102: β lay outside of its own interval."""
    fit = fit_table(Path(__file__).parent / "chinchilla_6n_d.csv", x=("flops_per_token", "tokens"), y="loss")
    law = fit.groups[0].size_data
    assert law is not None
    for name in ("alpha", "beta"):
        assert law.exponent_intervals[name][0] <= law.exponents()[name] <= law.exponent_intervals[name][1]


def test_as_many_rows_as_parameters_determine_no_exponent() -> None:
    """An interval of width zero once stood beside an exact fit of five rows."""
    n, d, loss = [1e6, 2e6, 1e6, 2e6, 4e6], [1e8, 1e8, 4e8, 4e8, 4e8], [3.1, 2.9, 2.7, 2.5, 2.4]
    for lo, hi in fit_size_data(n, d, loss).exponent_intervals.values():
        assert (lo, hi) == (0.01, 3.0)
