"""The learning-rate law finds planted optima in spite of runs that blew up, and says when the grid was too narrow."""

import json

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import LearningRateLaw, fit_learning_rate


def sweep(optimum, rates, sizes=(1e6, 4e6, 1.6e7), noise=0.0):
    rng = np.random.default_rng(0)
    n, lr = (g.ravel() for g in np.meshgrid(sizes, rates))
    t = np.log(lr / optimum(n))
    bowl = 0.04 * t**2 + 0.06 * np.maximum(t, 0) ** 3
    return n, lr, 2.0 * (n / 1e6) ** -0.1 * np.exp(bowl + noise * rng.standard_normal(t.size))


def test_a_planted_rule_comes_back():
    rule = lambda n: 0.01 * (n / 1e6) ** -0.25  # noqa: E731
    for noise, slope in ((0.0, 0.02), (0.003, 0.06)):
        law = fit_learning_rate(*sweep(rule, np.geomspace(5e-4, 0.1, 9), noise=noise))
        assert law.size == pytest.approx(-0.25, abs=slope)
        # The planted bowl is steeper above its optimum, the fitted one is not: the optimum is read 6 % too low.
        assert float(law.predict(4e6)) == pytest.approx(rule(4e6), rel=0.07)
        assert not any("edge" in w for w in law.warnings)


def test_diverged_runs_do_not_move_the_optimum():
    n, lr, loss = sweep(lambda n: 0.01 + 0 * n, np.geomspace(1e-3, 0.1, 7))
    blown = np.where(lr > 0.03, np.nan, loss)
    a, b = (fit_learning_rate(n, lr, z).predict(4e6) for z in (loss, blown))
    assert float(a) == pytest.approx(float(b), rel=0.05)


def test_an_optimum_on_the_edge_is_said_and_prediction_stays_near_the_grid():
    n, lr, loss = sweep(lambda n: 0.5 + 0 * n, np.geomspace(1e-3, 0.01, 4))
    law = fit_learning_rate(n, lr, loss)
    assert any("high edge" in w for w in law.warnings)
    assert float(law.predict(1e12)) <= 0.01 * law.step * 1.001
    assert LearningRateLaw.from_dict(json.loads(json.dumps(law.to_dict()))) == law


def test_images_move_the_optimum_where_the_table_shows_it():
    n, lr, d = (g.ravel() for g in np.meshgrid([1e6, 4e6, 1.6e7], np.geomspace(1e-3, 0.1, 9), [1e4, 1e5, 1e6]))
    best = 0.01 * (d / 1e5) ** -0.2
    law = fit_learning_rate(n, lr, np.exp(0.05 * np.log(lr / best) ** 2), d)
    assert law.images == pytest.approx(-0.2, abs=0.05)
    with pytest.raises(LawError, match="give d"):
        law.predict(1e6)


def test_a_search_in_which_all_diverged_is_refused():
    with pytest.raises(LawError, match="diverged"):
        fit_learning_rate([1e6] * 3, [0.1, 0.2, 0.3], [np.nan, np.inf, np.nan])
