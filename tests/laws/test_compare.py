"""Families are ranked by what they will do at the target, with a probability, and the naive ranking beside."""

import json

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import Comparison, TableFit, compare, fit_table, markdown, speedup
from isoflop.laws.speedup import frontier_of_curve


def table(e, a, b, alpha, beta, seed, noise=0.01):
    n, budget = (g.ravel() for g in np.meshgrid(np.geomspace(2e5, 5e6, 5), np.geomspace(1e10, 1e12, 5)))
    d = budget / n
    error = np.random.default_rng(seed).standard_normal(n.size)
    return n, d, (e + a * n**-alpha + b * d**-beta) * np.exp(noise * error)


def test_a_crossover_beyond_the_ladder_is_foreseen():
    """One family starts lower but stops at a high floor; at 1,000 times the largest rung the other has passed it."""
    tables = {"early": table(0.9, 40, 120, 0.4, 0.4, 1), "late": table(0.1, 22, 30, 0.25, 0.25, 2)}
    result = compare(tables, 1e15)
    assert result.naive_best == "early"
    assert result.best == "late"
    assert result.standings[0].p_best > 0.7
    assert any("cross" in w for w in result.warnings)


def test_a_comparison_does_not_depend_on_seed_order_or_units():
    tables = {"a": table(0.4, 30, 100, 0.3, 0.3, 1), "b": table(0.3, 33, 90, 0.3, 0.28, 2)}
    base = compare(tables, 1e13, bootstrap=40)
    order = np.random.default_rng(0).permutation(25)
    other = compare(
        {f: (n[order], 10 * d[order], 100 * z[order]) for f, (n, d, z) in tables.items()}, 1e14, bootstrap=40
    )
    for one, two in zip(base.standings, other.standings, strict=True):
        assert one.family == two.family
        assert two.p_best == pytest.approx(one.p_best, abs=0.02)
        assert two.loss == pytest.approx(100 * one.loss, rel=1e-3)


def test_the_last_ranking_counts_where_slopes_are_noise():
    """Families that differ by a constant factor, measured with noise: the naive ranking predicts their difference."""
    tables = {f: table(0.0, 30, 100, 0.3, 0.3, k, noise=0.05) for k, f in enumerate("ab")}
    n, d, z = tables["b"]
    result = compare({"a": tables["a"], "b": (n, d, 1.2 * z)}, 1e13, bootstrap=40)
    assert result.best == result.naive_best == "a"
    assert result.standings[0].p_best > 0.7


def test_equal_families_get_equal_chances():
    law = (0.4, 30, 100, 0.3, 0.3)
    result = compare({"a": table(*law, 1), "b": table(*law, 2)}, 5e12)
    assert 0.15 < result.standings[0].p_best < 0.85
    assert sum(s.p_best for s in result.standings) == pytest.approx(1.0)


def test_measured_families_are_ranked_as_the_larger_runs_were(fractal_tables):
    small = {f: tuple(c[n * d < 4e11] for c in (n, d, z)) for f, (n, d, z) in fractal_tables.items()}
    result = compare(small, 1e12)
    assert result.best == "pool"
    assert result.standings[0].interval[0] < 0.4132 < result.standings[0].interval[1]
    assert Comparison.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_nothing_to_compare_is_an_error():
    with pytest.raises(LawError, match="no family"):
        compare({}, 1e12)


def test_a_crossover_budget_is_named_with_an_interval_that_holds_it():
    tables = {"early": table(0.9, 40, 120, 0.4, 0.4, 1), "late": table(0.1, 22, 30, 0.25, 0.25, 2)}
    crossing = compare(tables, 1e13).crossovers[0]
    assert (crossing.earlier, crossing.later) == ("early", "late")
    # Where the planted frontiers cross, by brute force over sizes.
    n = np.geomspace(1e4, 1e9, 4000)
    grid = np.geomspace(1e12, 1e15, 300)
    early = np.array([(0.9 + 40 * n**-0.4 + 120 * (c / n) ** -0.4).min() for c in grid])
    late = np.array([(0.1 + 22 * n**-0.25 + 30 * (c / n) ** -0.25).min() for c in grid])
    truth = grid[np.argmax(late < early)]
    assert crossing.interval[0] < truth < crossing.interval[1]
    assert crossing.compute == pytest.approx(truth, rel=0.5)
    assert 0.5 < crossing.probability <= 1.0


def test_a_crossover_that_need_not_come_has_an_open_interval():
    """The laws cross at the far end of what is looked at: pairs that do not cross there are beyond, not left out."""
    early, late = table(0.5, 40, 120, 0.4, 0.4, 1, 0.005), table(0.46, 44, 132, 0.4, 0.4, 2, 0.005)
    crossing = compare({"early": early, "late": late}, 1e13).crossovers[0]
    assert crossing.probability < 0.9
    assert crossing.searched is not None
    assert crossing.interval[0] <= crossing.compute <= crossing.interval[1] == crossing.searched[1]


@pytest.mark.long
def test_intervals_of_crossovers_hold_the_planted_ones():
    """Twelve pairs of which the later one passes the earlier one near the top of the ladder; stated: 90 %."""
    n = np.geomspace(1e4, 1e9, 2000)
    grid = np.geomspace(1e10, 1e14, 200)
    inside = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        early, late = (0.6, 120, 40, 0.4, 0.4), (0.3, 120 * rng.uniform(1.2, 1.5), 40 * rng.uniform(1.2, 1.5), 0.4, 0.4)
        gap = [
            np.subtract(*((e + a * n**-p + b * (c / n) ** -q).min() for e, a, b, p, q in (early, late))) for c in grid
        ]
        truth = grid[np.argmax(np.array(gap) > 0)]
        crossings = compare({"early": table(*early, seed), "late": table(*late, seed + 100)}, 1e12, bootstrap=60)
        inside += [c.interval[0] <= truth <= c.interval[1] for c in crossings.crossovers]
    assert len(inside) >= 9
    assert np.mean(inside) >= 0.8


def curves_of(factor: float, seed: int, points: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two curves of one law, the first at `factor` times the compute, with noise of 0.5 %."""
    rng = np.random.default_rng(seed)
    b, c, x = rng.uniform(0.1, 0.3), rng.uniform(0.0, 0.5), np.geomspace(1e10, 1e12, points)
    return [(x, ((x * s / 1e10) ** -b + c) * np.exp(0.005 * rng.standard_normal(points))) for s in (factor, 1.0)]


@pytest.mark.parametrize("tables", [2, pytest.param(40, marks=pytest.mark.long)])
def test_the_interval_of_a_speedup_holds_a_planted_factor(tables):
    inside = []
    for seed in range(tables):
        first, second = (frontier_of_curve(*curve) for curve in curves_of(2.5, seed))
        found = speedup(("a", first), ("b", second))
        inside.append(found.interval[0] <= 2.5 <= found.interval[1])
        assert found.interval[0] <= found.factor <= found.interval[1]
    assert np.mean(inside) >= (0.85 if tables == 40 else 0.5)


def test_a_speedup_of_sizes_is_in_the_answer_and_turns_around():
    rng = np.random.default_rng(0)
    columns: dict[str, list[str]] = {"optimizer": [], "n": [], "d": [], "loss": []}
    for name, s in (("muon", 2.5**0.5), ("adamw", 1.0)):
        for compute in np.geomspace(1e10, 1e12, 5):
            for n in np.geomspace(0.25, 4, 5) * 1e6 * (compute / 1e11) ** 0.5:
                d = compute / n
                loss = (0.6 + (n * s / 1e6) ** -0.35 + (d * s / 1e5) ** -0.3) * np.exp(0.01 * rng.standard_normal())
                for column, cell in zip(columns.values(), (name, n, d, loss), strict=True):
                    column.append(str(cell))
    fit = fit_table(columns, x=["n", "d"], y="loss", by="optimizer", faster=("muon", "adamw"))
    found = fit.speedup
    assert found is not None
    assert found.factor == pytest.approx(2.5, rel=0.15)
    assert found.interval[1] / found.interval[0] < 1.5
    assert "muon needs" in markdown(fit)
    assert TableFit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
    muon, adamw = (g.size_data for g in fit.groups)
    assert muon is not None
    assert adamw is not None
    back = speedup(("adamw", adamw), ("muon", muon))
    assert back.factor == pytest.approx(1 / found.factor, rel=1e-6)
    assert "times more compute" in back.statement


def test_a_speedup_needs_losses_in_common_or_a_budget():
    x = np.geomspace(1e10, 1e12, 8)
    good, bad = frontier_of_curve(x, x**-0.1), frontier_of_curve(x, 5 * x**-0.1)
    with pytest.raises(LawError, match="reached no loss in common: give a --budget"):
        speedup(("good", good), ("bad", bad))
    assert speedup(("good", good), ("bad", bad), 1e12).factor > 100
    with pytest.raises(LawError, match="there is no group `c`"):
        fit_table({"x": ["1"] * 2, "y": ["1"] * 2, "g": ["a", "b"]}, x=["x"], y="y", by="g", faster=("a", "c"))
