"""What the laws say about worlds whose truth is known: are P(best) and crossovers calibrated, do curves generalise?

    python benchmarks/laws_planted.py [clean | bent | curves]...

`clean` and `bent` plant 80 pairs of families each (about a minute each on an idle core); `bent` makes both depart from
the form beyond the middle of the ladder, each in its own direction. `curves` plants 40 learning curves.
"""

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from isoflop import laws

Array = NDArray[np.float64]
Truth = tuple[float, float, float, float, float, float]
"""E, A, B, α, β and the bend κ: loss is multiplied by exp(κ·log(C / 1e11)²) above C = 1e11."""


def loss_of(truth: Truth, n: Array, compute: Array) -> Array:
    e, a, b, alpha, beta, bend = truth
    plain = e + a * (n / 1e6) ** -alpha + b * (compute / n / 1e5) ** -beta
    return np.asarray(plain * np.exp(bend * np.maximum(np.log(compute / 1e11), 0.0) ** 2))


def best_loss(truth: Truth, compute: float) -> float:
    n = np.geomspace(1e3, 1e11, 6000)
    return float(loss_of(truth, n, np.full_like(n, compute)).min())


def pair(rng: np.random.Generator, bend: float) -> dict[str, Truth]:
    """Two families that resemble each other."""
    alpha, beta = rng.uniform(0.25, 0.5, 2)
    e, a, b = rng.uniform(0, 0.5), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5)
    families = {}
    for name in "ab":
        p, q = np.maximum((alpha, beta) + 0.04 * rng.standard_normal(2), 0.12)
        u, v = np.exp(0.1 * rng.standard_normal(2))
        families[name] = (e, a * u, b * v, float(p), float(q), float(bend * rng.standard_normal()))
    return families


def families(seed: int, bend: float, pairs: int = 80) -> None:
    stated, right, inside, naive, best, given_up, expected, crossings = ([] for _ in range(8))
    for k in range(pairs):
        rng = np.random.default_rng([seed, k])
        truth, noise, budgets = pair(rng, bend), float(rng.choice([0.005, 0.01, 0.02])), int(rng.integers(4, 6))
        levels = np.geomspace(1e10, 1e12, budgets)
        n = np.concatenate([1e6 * np.sqrt(c / 1e11) * np.geomspace(0.2, 5, 5) for c in levels])
        compute = np.repeat(levels, 5)
        tables = {
            name: (n, compute / n, loss_of(law, n, compute) * np.exp(noise * rng.standard_normal(n.size)))
            for name, law in truth.items()
        }
        target = float(10 ** rng.uniform(12.5, 14))
        real = {name: best_loss(law, target) for name, law in truth.items()}
        said = laws.compare(tables, target, bootstrap=100)
        winner = min(real, key=lambda name: real[name])
        top = max(said.standings, key=lambda s: s.p_best)
        stated.append(top.p_best)
        right.append(top.family == winner)
        inside += [s.interval[0] <= real[s.family] <= s.interval[1] for s in said.standings]
        best.append(said.best == winner)
        naive.append(said.naive_best == winner)
        expected.append(said.standings[0].regret)
        given_up.append(real[said.best] - real[winner])
        grid = np.geomspace(1e10, 1e15, 50)
        gap = np.array([best_loss(truth["a"], c) - best_loss(truth["b"], c) for c in grid])
        turns = np.flatnonzero(np.sign(gap[1:]) != np.sign(gap[:-1]))
        if turns.size and said.crossovers:
            lo, hi = said.crossovers[0].interval
            crossings.append(lo <= np.sqrt(grid[turns[-1]] * grid[turns[-1] + 1]) <= hi)
    p, hit = np.array(stated), np.array(right)
    print("\n| P(best) stated | pairs | mean stated | was best |\n|---|---|---|---|")
    for lo, hi in ((0.5, 0.6), (0.6, 0.75), (0.75, 0.9), (0.9, 0.97), (0.97, 1.001)):
        here = (p >= lo) & (p < hi)
        print(f"| {lo:.0%} to {min(hi, 1):.0%} | {here.sum()} | {p[here].mean():.0%} | {hit[here].mean():.0%} |")
    print(f"best family named: {np.mean(best):.0%}, by the naive ranking {np.mean(naive):.0%}")
    print(f"regret: expected {np.mean(expected):.4f}, real {np.mean(given_up):.4f}")
    print(
        f"90% intervals of the loss hold {np.mean(inside):.1%}, of {len(crossings)} crossovers {np.mean(crossings):.0%}"
    )


def curves(count: int = 40) -> None:
    """Curves of several shapes, seen as published ones are: medians of bins, made monotone, up to half of the x."""
    scores: dict[str, list[float]] = {"mixture": [], "damped": [], "m4": [], "offset": [], "power": []}
    inside = []
    for k in range(count):
        rng = np.random.default_rng(k)
        noise, b, c = rng.uniform(0.005, 0.03), rng.uniform(0.15, 0.5), rng.uniform(0.02, 0.3)
        x = np.linspace(2e6, 2e9, 1000)  # measured at equal intervals, as in training
        shape = ("offset", "m4", "slowing", "broken")[k % 4]
        if shape == "slowing":  # its local slope decays at a rate of its own
            rate = rng.uniform(0.15, 0.5)
            true = 0.3 * np.exp(-b * 0.5 * -np.expm1(-rate * np.log(x / 1e8)) / rate)
        elif shape == "m4":
            top, t = rng.uniform(0.8, 1.0), np.log(x / 1e8)
            true = np.exp(laws.FORMS["m4"].evaluate(np.array([[-1.5, b, c, rng.uniform(0.3, 2.0), top]]), t)[0][0])
        else:
            true = 0.5 * (x / 1e7) ** -b + c * (shape == "offset")
            true *= 1.0 if shape == "offset" else (1 + (x / 2e8)) ** (0.5 * b)
        y = true * np.exp(noise * rng.standard_normal(x.size))
        seen = x <= 1e9
        edges = np.geomspace(1e6, 1e9, 61)
        bins = [np.flatnonzero((x > lo) & (x <= hi)) for lo, hi in pairwise(edges)]
        bins = [b for b in bins if b.size]
        u = np.array([np.median(x[b]) for b in bins])
        v = np.minimum.accumulate([np.median(y[b]) for b in bins])
        law = laws.fit_curve(u, v)
        later = x[~seen]
        lo, hi = law.interval(later)
        inside.append(float(np.mean((lo <= y[~seen]) & (y[~seen] <= hi))))
        for name in scores:
            predict = law.predict if name == "mixture" else laws.fit_form(name, u, v).predict
            scores[name].append(float(np.sqrt(np.mean(np.log(predict(later) / true[~seen]) ** 2))))
    print("\n| estimator | mean RMSE of log error about the truth | worst curve |\n|---|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {np.mean(values):.4f} | {np.max(values):.4f} |")
    print(f"90% intervals of a raw measurement hold {np.mean(inside):.1%}")


SECTIONS: dict[str, Callable[[], None]] = {
    "clean": lambda: families(1, 0.0),
    "bent": lambda: families(2, 0.006),
    "curves": curves,
}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        if section not in SECTIONS:
            sys.exit(f"no section `{section}`; there are {', '.join(SECTIONS)}")
        SECTIONS[section]()
