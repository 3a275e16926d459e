"""L = E + A·n^-α + B·d^-β finds planted laws, agrees with a general optimiser, and predicts measured runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from isoflop.errors import LawError
from isoflop.laws import SizeDataLaw, fit_size_data

PLANTED = (0.6, 40.0, 300.0, 0.30, 0.40)


def ladder(truth=PLANTED, noise=0.0, seed=0, sizes=5, budgets=4):
    """Runs at equal compute: `sizes` sizes at each of `budgets` budgets, n in training FLOPs an image."""
    e, a, b, alpha, beta = truth
    centre = np.geomspace(6e5, 4e6, budgets)
    n = np.concatenate([c * np.geomspace(1 / 5, 5, sizes) for c in centre])
    compute = np.repeat(np.geomspace(1e10, 1e12, budgets), sizes)
    d = compute / n
    loss = e + a * n**-alpha + b * d**-beta
    return n, d, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(loss.size))


@pytest.mark.parametrize(
    "truth", [PLANTED, (0.0, 40.0, 300.0, 0.3, 0.4), (1.2, 3000.0, 20.0, 0.6, 0.2), (0.3, 9.0, 9.0, 0.15, 0.15)]
)
def test_a_planted_law_without_noise_comes_back(truth):
    law = fit_size_data(*ladder(truth), bootstrap=0)
    assert (law.irreducible, law.alpha, law.beta) == pytest.approx((truth[0], truth[3], truth[4]), abs=2e-3)
    assert law.converged
    expected = truth[0] + truth[1] * 1e7 ** -truth[3] + truth[2] * 1e7 ** -truth[4]
    assert law.predict(1e7, 1e7) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_noisy_tables_extrapolate_inside_their_interval_mostly(seed):
    law = fit_size_data(*ladder(noise=0.02, seed=seed))
    e, a, b, alpha, beta = PLANTED
    n, d, _ = law.optimal(1e13)
    lo, hi = law.interval(n, d, 0.99)
    assert lo < e + a * n**-alpha + b * d**-beta < hi


def test_the_optimum_is_the_minimum_on_the_line_of_equal_compute():
    law = fit_size_data(*ladder(noise=0.01), bootstrap=20)
    n, d, loss = law.optimal(5e12)
    best = minimize_scalar(
        lambda t: float(law.predict(np.exp(t), 5e12 / np.exp(t), best=True)), bounds=(8, 25), method="bounded"
    )
    assert n * d == pytest.approx(5e12)
    assert np.log(n) == pytest.approx(best.x, abs=1e-3)
    assert loss == pytest.approx(best.fun)
    assert law.exponents()["size"] + law.exponents()["images"] == pytest.approx(1.0)


def test_no_general_optimiser_finds_a_better_fit():
    """SciPy from the fit and from forty random starts must not improve on the objective."""
    n, d, loss = ladder(noise=0.03, seed=3)
    law = fit_size_data(n, d, loss, bootstrap=0)
    delta = 1.345 * law.noise

    def objective(p):
        r = np.log(np.exp(p[2]) + np.exp(p[0]) * (n / 1e6) ** -p[3] + np.exp(p[1]) * (d / 1e6) ** -p[4]) - np.log(loss)
        opinion = (law.noise / 0.5) ** 2 * ((p[3] - 0.4) ** 2 + (p[4] - 0.4) ** 2) / 2
        return np.where(abs(r) <= delta, r * r / 2, delta * (abs(r) - delta / 2)).sum() + opinion

    a, b = np.log(law.a * 1e6**-law.alpha), np.log(law.b * 1e6**-law.beta)
    ours = objective([a, b, np.log(max(law.irreducible, 1e-12)), law.alpha, law.beta])
    rng = np.random.default_rng(0)
    starts = np.column_stack([rng.uniform(-2, 1, (40, 3)), rng.uniform(0.1, 1, (40, 2))])
    theirs = min(minimize(objective, start, method="BFGS").fun for start in starts)
    assert ours <= theirs * (1 + 1e-4)


def test_order_of_rows_units_and_seed_do_not_move_the_fit():
    n, d, loss = ladder(noise=0.02)
    base = fit_size_data(n, d, loss, bootstrap=10)
    shuffled = np.random.default_rng(1).permutation(n.size)
    again = fit_size_data(n[shuffled], d[shuffled], loss[shuffled], seed=7, bootstrap=10)
    scaled = fit_size_data(n / 3e9, d * 1e3, loss * 100, bootstrap=10)
    for other in (again, scaled):
        assert other.alpha == pytest.approx(base.alpha, rel=1e-3)
        assert other.beta == pytest.approx(base.beta, rel=1e-3)
    assert scaled.predict(1e7 / 3e9, 1e9) == pytest.approx(100 * base.predict(1e7, 1e6), rel=1e-3)


def test_a_larger_run_of_real_ladders_falls_inside_the_interval(fractal_tables):
    """Fitted up to 3e11 FLOPs, asked about the best measured run at 1e12 and (ViT) 3e12."""
    asked = inside = 0
    for n, d, loss in fractal_tables.values():
        low = n * d < 4e11
        law = fit_size_data(n[low], d[low], loss[low])
        for budget in (1e12, 3e12):
            here = np.flatnonzero(np.abs(np.log(n * d / budget)) < 0.1)
            if here.size:
                best = here[np.argmin(loss[here])]
                lo, hi = law.interval(n[best], d[best])
                asked += 1
                inside += lo <= loss[best] <= hi
    assert asked == 3
    assert inside >= 2


def test_a_law_that_was_always_too_high_is_corrected_by_its_backtests():
    """Loss that falls ever faster than a power law: the plain law overshoots, its backtests know by how much."""
    n, d, _ = ladder(budgets=6)
    t = np.log(n * d / 1e10)
    loss = 2.5 * np.exp(-0.10 * t - 0.02 * t**2 + 0.05 * (np.log(n / 6e5) - 0.4 * t) ** 2)
    below = n * d < 2e11
    law = fit_size_data(n[below], d[below], loss[below])
    top = np.flatnonzero(n * d > 0.9e12)
    best = top[np.argmin(loss[top])]
    plain = law.irreducible + law.a * n[best] ** -law.alpha + law.b * d[best] ** -law.beta
    assert np.mean(law.backtests.errors) < 0
    assert abs(np.log(law.predict(n[best], d[best]) / loss[best])) < 0.7 * abs(np.log(plain / loss[best]))


def test_a_law_survives_json():
    law = fit_size_data(*ladder(noise=0.02), bootstrap=5)
    assert SizeDataLaw.from_dict(json.loads(json.dumps(law.to_dict()))) == law


def test_an_optimum_at_the_edge_and_a_vanished_term_are_said():
    n, d, loss = ladder((0.2, 1e-9, 300.0, 0.3, 0.4), noise=0.01)
    law = fit_size_data(n, d, loss, bootstrap=20)
    assert any("smallest or largest tried" in w for w in law.warnings)
    size, images, predicted = law.optimal(1e13)
    assert np.isfinite([size, images, predicted]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d, z: (n[:3], d[:3], z[:3]), "too few"),
        (lambda n, d, z: (n * 0 + 1e6, d, z), "two sizes"),
        (lambda n, d, z: (n, d, z * 0 + 1), "the same in every run"),
        (lambda n, d, z: (n, d, np.where(np.arange(z.size) == 2, np.nan, z)), "row 3"),
        (lambda n, d, z: (n, -d, z), "`d` must be positive"),
        (lambda n, d, z: (n, d[:-1], z), "equal length"),
    ],
)
def test_tables_without_a_law_are_refused(change, message):
    with pytest.raises(LawError, match=message):
        fit_size_data(*change(*ladder()))


@pytest.mark.long
def test_given_runs_of_larger_budgets_are_predicted_within_the_planted_error():
    """At their own size and data, which need not be the best: what a frontier does next says little about them."""
    errors, inside = [], []
    for seed in range(30):
        n, d, loss = ladder(noise=0.01, seed=seed, budgets=5)
        past = n * d < 2e11
        law = fit_size_data(n[past], d[past], loss[past], bootstrap=10)
        e, a, b, alpha, beta = PLANTED
        later = n[~past], d[~past]
        truth = e + a * later[0] ** -alpha + b * later[1] ** -beta
        errors.append(np.log(law.predict(*later) / truth))
        lo, hi = law.interval(*later)
        inside.append((lo <= loss[~past]) & (loss[~past] <= hi))
    assert np.sqrt(np.mean(np.square(errors))) < 0.025  # three budgets, noise of 1 %, ×10
    assert np.mean(inside) > 0.8


def test_given_runs_of_published_language_models_are_predicted():
    """The runs of arXiv 2203.15556 with more than a fifth and a tenth of the largest compute, from the others."""
    n, d, loss = np.loadtxt(Path(__file__).parent / "chinchilla_6n_d.csv", delimiter=",", skiprows=1).T
    inside = []
    for factor in (5, 10):
        past = n * d <= (n * d).max() / factor
        law = fit_size_data(n[past], d[past], loss[past], bootstrap=20)
        lo, hi = law.interval(n[~past], d[~past])
        inside += ((lo <= loss[~past]) & (loss[~past] <= hi)).tolist()
        assert np.sqrt(np.mean(np.log(law.predict(n[~past], d[~past]) / loss[~past]) ** 2)) < 0.013
    assert np.mean(inside) > 0.75


def repeated_ladder(limit, harm=0.0, noise=0.003):
    """A ladder on so few images that its longest run sees them 30 times: (n, d, loss), their number, and the truth."""
    n, d, _ = ladder(budgets=5)
    unique = float(d.max() / 30)

    def truth(n, d, unique=unique):
        again = np.maximum(d / unique - 1, 0.0)
        images = unique * (np.minimum(d / unique, 1.0) + limit * (1 - np.exp(-again / limit)))
        return 0.6 + 40.0 * n**-0.3 + 300.0 * images**-0.4 + harm * again

    return n, d, truth(n, d) * np.exp(noise * np.random.default_rng(0).standard_normal(n.size)), unique, truth


def best_at(truth, compute, unique):
    n = np.geomspace(1e5, 1e9, 2000)
    loss = truth(n, compute / n, unique)
    return float(n[loss.argmin()]), float(loss.min())


@pytest.mark.parametrize(("limit", "harm"), [(4.0, 0.0), (12.0, 0.02)])
def test_repeated_images_are_worth_what_was_planted(limit, harm):
    """arXiv 2305.16264, without and with harm: the law, the best size, and what twice the images would bring."""
    n, d, loss, unique, truth = repeated_ladder(limit, harm)
    law = fit_size_data(n, d, loss, np.full(n.size, unique), bootstrap=30)
    assert law.repeats is not None
    assert law.variants["fresh"] < 0.01
    assert law.unique == unique
    assert law.epochs == pytest.approx(30.0)
    target = 10 * float((n * d).max())
    size, best = best_at(truth, target, unique)
    chosen = law.size(target)
    assert float(truth(chosen, target / chosen)) < 1.005 * best
    lo, hi = law.interval(chosen, target / chosen, best=True)
    assert lo < truth(chosen, target / chosen) < hi
    ratio, (low, high) = law.more_images(target)
    gain = best_at(truth, target, 2 * unique)[1] / best
    assert ratio == pytest.approx(gain, abs=0.02)
    assert low <= ratio <= high < 1
    assert law.predict(size, target / size, unique=2 * unique) < law.predict(size, target / size)
    assert SizeDataLaw.from_dict(json.loads(json.dumps(law.to_dict()))) == law
    if harm:
        shuffled = np.random.default_rng(1).permutation(n.size)
        again = fit_size_data(n[shuffled], d[shuffled], 100 * loss[shuffled], np.full(n.size, unique), bootstrap=0)
        assert again.optimal(target)[0] == pytest.approx(law.optimal(target)[0], rel=0.01)


def test_repeats_that_do_no_harm_are_as_good_as_new_images():
    n, d, loss = ladder(noise=0.003, budgets=5)
    law = fit_size_data(n, d, loss, np.full(n.size, d.max() / 30), bootstrap=30)
    assert law.variants["fresh"] > 0.2
    assert law.more_images(1e13)[1][1] == pytest.approx(1.0)
    e, a, b, alpha, beta = PLANTED
    size, images, best = law.optimal(1e13)
    assert best == pytest.approx(e + a * size**-alpha + b * images**-beta, rel=0.02)


def test_epochs_beyond_those_of_the_table_are_said():
    n, d, loss = ladder(noise=0.003)
    some = np.where(np.arange(n.size) % 3, 2 * d.max(), np.nan)
    fresh = fit_size_data(n, d, loss, some, bootstrap=0)
    assert (fresh.variants, fresh.repeats) == ({}, None)  # no run saw an image twice
    assert fresh.beyond_epochs(2 * d.max()) == ""
    assert "4 epochs" in fresh.beyond_epochs(8 * d.max())
    with pytest.raises(LawError, match="unique"):
        fit_size_data(n, d, loss, np.zeros(n.size))
