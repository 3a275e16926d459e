"""Every form has exact derivatives, comes back when planted, and its exponent's interval holds."""

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import FORMS, fit_form

T = np.linspace(-4.0, 0.0, 25)
PLANTED = {
    "power": [-0.5, 0.3],
    "damped": [-0.5, 0.2],
    "offset": [-1.0, 0.5, 0.3],
    "m3": [-0.3, 0.4, -1.0],
    "double": [-1.0, 0.5, 0.2, -3.0],
    "m4": [-1.0, 0.5, 0.2, 0.8, 1.0],
    "broken": [-1.0, 0.5, 0.1, -0.25, -2.0, -0.7],
}


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_agree_with_finite_differences(name):
    theta, form = np.array([PLANTED[name]]), FORMS[name]
    _, jacobian = form.evaluate(theta, T)
    for k in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, k] = 1e-6
        numeric = (form.evaluate(theta + step, T)[0] - form.evaluate(theta - step, T)[0]) / 2e-6
        np.testing.assert_allclose(jacobian[:, :, k], numeric, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_a_planted_form_comes_back_and_extrapolates(name):
    form, theta = FORMS[name], np.array([PLANTED[name]])
    x = 1e9 * np.exp(T)
    law = fit_form(name, x, np.exp(form.evaluate(theta, T)[0][0]))
    ahead = np.array([0.5, 1.0])
    np.testing.assert_allclose(law.predict(1e9 * np.exp(ahead)), np.exp(form.evaluate(theta, ahead)[0][0]), rtol=5e-3)
    if name not in ("m4", "broken"):  # those two can say the same curve in several ways
        assert law.exponent == pytest.approx(PLANTED[name][1], rel=0.03)


def test_m4_solves_its_equation():
    log_a, b, c, alpha, top = PLANTED["m4"]
    y = np.exp(FORMS["m4"].evaluate(np.array([PLANTED["m4"]]), T)[0][0])
    np.testing.assert_allclose((y - c) / (top - y) ** alpha, np.exp(log_a - b * T), rtol=1e-8)


def test_an_outlier_does_not_move_the_exponent():
    rng = np.random.default_rng(0)
    x = np.geomspace(1e6, 1e9, 15)
    y = 50 * x**-0.3 * np.exp(0.01 * rng.standard_normal(15))
    y[6] *= 1.6
    law = fit_form("power", x, y)
    assert law.exponent == pytest.approx(0.3, abs=0.01)


def test_exponent_intervals_hold_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(60):
        b, x = rng.uniform(0.1, 0.6), np.geomspace(1, 10 ** rng.uniform(1.5, 3), 12)
        lo, hi = fit_form("power", x, x**-b * np.exp(0.02 * rng.standard_normal(12))).exponent_interval
        inside.append(lo <= b <= hi)
    assert 0.87 <= np.mean(inside) <= 1.0


def test_forms_that_do_not_exist_or_cannot_be_fitted_are_refused():
    with pytest.raises(LawError, match="no form `cubic`"):
        fit_form("cubic", [1, 2, 3], [3, 2, 1])
    with pytest.raises(LawError, match="at least 6"):
        fit_form("m4", [1, 2, 3], [3, 2, 1])
