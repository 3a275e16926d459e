"""a·(C + d)^-b + c and the lower envelope it is fitted to."""

import json

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import FrontierLaw, fit_frontier, frontier_points

COMPUTE = np.geomspace(1e10, 1e13, 12)


@pytest.mark.parametrize("truth", [(0.63, 0.32, 0.12, 0.52), (1.0, 0.2, 0.0, 0.0), (0.26, 0.35, 0.09, 0.01)])
def test_a_planted_frontier_comes_back(truth):
    a, b, c, d = truth
    compute = np.geomspace(0.05, 2e3, 16)
    law = fit_frontier(compute, a * (compute + d) ** -b + c, bootstrap=0)
    assert (law.a, law.b, law.c, law.d) == pytest.approx(truth, rel=2e-2, abs=2e-3)
    assert law.r_squared > 0.9999


def test_the_next_budgets_of_a_noisy_frontier_fall_inside():
    hits = []
    for seed in range(12):
        noise = np.exp(0.02 * np.random.default_rng(seed).standard_normal(5))
        law = fit_frontier(COMPUTE[:5], (900 * COMPUTE[:5] ** -0.3 + 0.3) * noise)
        lo, hi = law.interval(COMPUTE[8], 0.9)
        hits.append(lo < 900 * COMPUTE[8] ** -0.3 + 0.3 < hi)
    assert np.mean(hits) >= 0.75


def test_an_interval_widens_beyond_the_data():
    law = fit_frontier(COMPUTE[:6], 900 * COMPUTE[:6] ** -0.3 + 0.3)
    lo, hi = law.interval(np.array([COMPUTE[5], COMPUTE[8], COMPUTE[11]]))
    widths = np.log(hi / lo)
    assert widths[0] < widths[1] < widths[2]


def test_frontier_points_are_the_best_run_of_each_budget(fractal_tables):
    points = frontier_points(*fractal_tables["vit"])
    assert points.loss == (2.2763, 1.8056, 1.5035, 1.2124, 0.9251, 0.7063)
    assert points.on_edge[0]
    assert not points.on_edge[4]


def test_a_frontier_survives_json():
    law = fit_frontier(COMPUTE[:5], 900 * COMPUTE[:5] ** -0.3 + 0.3, bootstrap=5)
    assert FrontierLaw.from_dict(json.loads(json.dumps(law.to_dict()))) == law


@pytest.mark.parametrize(
    ("compute", "loss", "message"),
    [([1, 2], [1, 0.9], "3 budgets"), ([1, 2, 4], [1, 1, 1], "the same"), ([1, 2, 4], [1, -1, 1], "row 2")],
)
def test_tables_without_a_frontier_are_refused(compute, loss, message):
    with pytest.raises(LawError, match=message):
        fit_frontier(compute, loss)
