"""The order of the rows, the units and the seed of the bootstrap do not move a law."""

import numpy as np
import pytest

from isoflop.laws import FORMS, fit_finite_data, fit_form, fit_frontier, fit_learning_rate

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("form", FORMS)
def test_of_a_form(form):
    x = np.geomspace(1e6, 1e9, 16)
    y = (30 * x**-0.3 + 0.05) * np.exp(0.01 * RNG.standard_normal(16))
    order = RNG.permutation(16)
    base = float(fit_form(form, x, y).predict(2e9))
    assert float(fit_form(form, x[order], y[order]).predict(2e9)) == pytest.approx(base, rel=1e-6)
    assert float(fit_form(form, x / 1e6, 100 * y).predict(2e3)) == pytest.approx(100 * base, rel=1e-3)


def test_of_the_frontier():
    c = np.geomspace(1e10, 1e13, 9)
    y = (900 * c**-0.3 + 0.3) * np.exp(0.01 * RNG.standard_normal(9))
    order = RNG.permutation(9)
    base = float(fit_frontier(c, y, bootstrap=5).predict(1e14))
    assert float(fit_frontier(c[order], y[order], seed=9, bootstrap=5).predict(1e14)) == pytest.approx(base, rel=1e-6)
    assert float(fit_frontier(c / 1e12, 100 * y, bootstrap=5).predict(100)) == pytest.approx(100 * base, rel=1e-3)


def test_of_the_finite_data_form():
    n, seen = (g.ravel() for g in np.meshgrid(np.geomspace(1e9, 1e11, 4), np.geomspace(1e6, 1e9, 5)))
    y = (0.5 + 40 * n**-0.2 + 60 * seen**-0.3) * np.exp(0.003 * RNG.standard_normal(n.size))
    order = RNG.permutation(n.size)
    fit = lambda *columns, seed=0: fit_finite_data(*columns, variants=["additive"], seed=seed, bootstrap=5)  # noqa: E731
    base = float(fit(n, seen, y).predict(1e12, 1e10))
    assert float(fit(n[order], seen[order], y[order], seed=9).predict(1e12, 1e10)) == pytest.approx(base, rel=1e-3)
    assert float(fit(n / 1e9, seen / 1e3, y).predict(1e3, 1e7)) == pytest.approx(base, rel=1e-3)
    assert float(fit(n, seen, y * 1e-4).predict(1e12, 1e10)) == pytest.approx(1e-4 * base, rel=1e-3)


def test_of_the_learning_rate_law():
    n, lr = (g.ravel() for g in np.meshgrid([1e6, 4e6, 1.6e7], np.geomspace(1e-3, 0.1, 7)))
    y = 2 * np.exp(0.05 * np.log(lr / (0.01 * (n / 1e6) ** -0.25)) ** 2)
    order = RNG.permutation(n.size)
    base = float(fit_learning_rate(n, lr, y).predict(8e6))
    assert float(fit_learning_rate(n[order], lr[order], y[order]).predict(8e6)) == pytest.approx(base, rel=1e-9)
    assert float(fit_learning_rate(n / 1e6, lr * 10, 5 * y).predict(8.0)) == pytest.approx(10 * base, rel=1e-6)
