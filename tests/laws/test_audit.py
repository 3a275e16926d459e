"""Every check of the audit sees the trap that was planted for it, and is quiet where there is none."""

import re
from dataclasses import replace

import numpy as np
import pytest

from isoflop.laws import audit_curve, audit_size_data, fit_curve, fit_size_data


def ladder(noise=0.005, copies=1, change=lambda n, d, z: z):
    n, budget = (g.ravel() for g in np.meshgrid(np.geomspace(2e5, 5e6, 5), np.geomspace(1e10, 1e12, 5)))
    n, budget = np.tile(n, copies), np.tile(budget, copies)
    d = budget / n
    loss = change(n, d, 0.3 + 120 * n**-0.4 + 40 * d**-0.4)
    return n, d, loss * np.exp(noise * np.random.default_rng(0).standard_normal(n.size))


@pytest.fixture(scope="module")
def sound():
    table = ladder()
    return fit_size_data(*table, bootstrap=20), table


def verdict(check, law, table, **runs):
    return next(f for f in audit_size_data(law, *table, runs) if f.check == check)


def test_a_sound_ladder_passes_every_check_it_can_take(sound):
    law, table = sound
    found = {f.check: f.verdict for f in audit_size_data(law, *table)}
    assert found.pop("noise between seeds") == "warning"  # one seed a run
    assert {check for check, v in found.items() if v == "warning"} == set()
    assert {check for check, v in found.items() if v == "unknown"} == {
        "best learning rate inside the grid", "warm-up share", "one schedule, decayed to the end",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("check", "fault", "words"),
    [
        ("convergence", {"converged": False}, "not a minimum"),
        ("agreement of starts", {"agreement": 0.1}, "another minimum is close"),
        ("identifiability", {"condition": 1e9}, "condition number 1e[+]09"),
        ("identifiability", {"b": 0.0}, "no effect of images"),
        ("identifiability", {"exponent_intervals": {"alpha": (0.01, 3.0), "beta": (0.3, 0.5)}}, "exponent of size"),
    ],
)
def test_a_faulty_fit_is_told(sound, check, fault, words):
    law, table = sound
    found = verdict(check, replace(law, **fault), table)
    assert found.verdict == "warning"
    assert re.search(words, found.detail)


def test_backtests_that_failed_are_told(sound):
    law, table = sound
    for coverage, words in ((0.5, "only 50% of the backtests"), (None, "too few points for a backtest")):
        found = verdict("backtests", replace(law, backtests=replace(law.backtests, coverage=coverage)), table)
        assert found.verdict == "warning"
        assert words in found.detail


@pytest.mark.parametrize("axis", ["size", "images", "compute"])
def test_trends_and_bends_of_the_residuals_are_told_with_their_axis(sound, axis):
    law, (n, d, z) = sound
    t = np.log({"size": n, "images": d, "compute": n * d}[axis])
    t = (t - t.mean()) / t.std()
    for shape, words in ((t, "a trend"), (t**2, "a bend")):
        off = replace(law, residuals=tuple(0.03 * shape + np.array(law.residuals)))
        found = verdict(f"residuals against {axis}", off, (n, d, z))
        assert found.verdict == "warning"
        assert words in found.detail


def test_a_law_with_another_shape_leaves_a_bend_along_compute():
    table = ladder(0.002, change=lambda n, d, z: z * np.exp(0.05 * np.log(n * d / 1e11) ** 2))
    found = verdict("residuals against compute", fit_size_data(*table, bootstrap=5), table)
    assert "the form misses something along compute" in found.detail


def test_sizes_that_miss_the_optimum_are_told(sound):
    law, _ = sound
    table = ladder(change=lambda n, d, z: 120 * n**-0.4)
    assert verdict("best size inside the grid", law, table).verdict == "warning"


def test_learning_rates_on_the_edge_of_their_grid_are_told(sound):
    law, (n, d, z) = sound
    law = replace(law, residuals=law.residuals * 3)
    rates = np.repeat([1e-3, 3e-3, 1e-2], n.size)
    for bowl, expected in ((np.log(rates / 3e-3) ** 2, "ok"), (-np.log(rates), "warning")):
        table = np.tile(n, 3), np.tile(d, 3), np.tile(z, 3) * np.exp(0.05 * bowl)
        check = "best learning rate inside the grid"
        assert verdict(check, law, table, learning_rate=[f"{r:g}" for r in rates]).verdict == expected


def test_warm_up_and_schedules_are_looked_at(sound):
    law, table = sound
    d, runs = table[1], table[1].size
    for warmup, expected in ((0.1, "ok"), (0.5, "warning"), (500, "unknown"), ("auto", "unknown")):
        assert verdict("warm-up share", law, table, warmup=[warmup] * runs).verdict == expected
    check = "one schedule, decayed to the end"
    assert verdict(check, law, table, schedule=["cosine"] * runs, horizon=d).verdict == "ok"
    assert "schedules differ" in verdict(check, law, table, schedule=["cosine"] + ["linear"] * (runs - 1)).detail
    assert "read off before" in verdict(check, law, table, horizon=3 * d).detail


def test_noise_of_repeats_is_compared_with_the_noise_about_the_law():
    check = "noise between seeds"
    table = ladder(0.01, copies=2)
    assert verdict(check, fit_size_data(*table, bootstrap=5), table).verdict == "ok"
    table = ladder(0.0005, copies=2, change=lambda n, d, z: z * np.exp(0.05 * np.log(n * d / 1e11) ** 2))
    found = verdict(check, fit_size_data(*table, bootstrap=5), table)
    assert found.verdict == "warning"
    assert "the form does not fit" in found.detail


def test_a_curve_that_many_forms_explain_and_one_without_backtests_are_told():
    x = np.geomspace(1e6, 1e9, 6)
    found = {f.check: f for f in audit_curve(fit_curve(x, x**-0.2), x, x**-0.2)}
    assert found["agreement of forms"].verdict == "warning"
    untested = replace(fit_curve(x, x**-0.2), backtest_coverage=None)
    found = {f.check: f for f in audit_curve(untested, x, x**-0.2)}
    assert "too few points for a backtest" in found["backtests"].detail
