"""Which family is best at a budget that nobody has trained at: probabilities, regret, and the naive ranking beside."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.frontier import frontier_points
from isoflop.laws.records import Record
from isoflop.laws.size_data import SizeDataLaw, fit_size_data

Table = tuple[ArrayLike, ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Standing(Record):
    """How one family stands at the target: predicted loss, its interval, P(best), expected regret (loss given up)."""

    family: str
    loss: float
    interval: tuple[float, float]
    p_best: float
    regret: float


@dataclass(frozen=True)
class Comparison(Record):
    """Families at `compute`, best expected first.

    Attributes:
        standings: one per family, ascending in expected regret.
        best: the family of least expected regret.
        naive_best: the family with the lowest loss at the largest budget that all families were measured at.
        naive: family → its lowest loss there. naive_compute: that budget.
        level: of the intervals.
    """

    compute: float
    standings: tuple[Standing, ...]
    best: str
    naive_best: str
    naive: dict[str, float]
    naive_compute: float
    level: float
    warnings: tuple[str, ...] = ()


def compare(
    tables: Mapping[str, Table],
    compute: float,
    *,
    laws: Mapping[str, SizeDataLaw] | None = None,
    level: float = 0.9,
    seed: int = 0,
    bootstrap: int = 200,
) -> Comparison:
    """Families ranked at `compute` training FLOPs from their tables of (n, d, loss).

    Args:
        tables: family → (training FLOPs per image, images, loss). compute: the budget asked about.
        laws: family → its law if fitted already. level: of the intervals. seed, bootstrap: as in `fit_size_data`.

    Raises:
        LawError: no table, a budget that is not positive, or a table from which no law can be fitted.
    """
    if not tables:
        raise LawError("there is no family to compare")
    if not (np.isfinite(compute) and compute > 0):
        raise LawError(f"the budget must be positive FLOPs, not {compute}")
    known = dict(laws or {})
    draws, predicted = {}, {}
    rng = np.random.default_rng(seed)
    for family, table in tables.items():
        law = known.get(family) or fit_size_data(*table, seed=seed, bootstrap=bootstrap)
        n, d, loss = law.optimal(compute)
        predicted[family] = loss
        # Families are measured apart, so their errors are independent: shuffle the stratified draws.
        draws[family] = rng.permutation(rng.choice(law.sample(n, d), 4000))
    losses = np.stack([draws[family] for family in tables])
    best = losses.min(axis=0)
    share = np.bincount(losses.argmin(axis=0), minlength=len(draws)) / losses.shape[1]
    lo, hi = np.quantile(losses, [0.5 - level / 2, 0.5 + level / 2], axis=1)
    standings = [
        Standing(f, predicted[f], (float(lo[k]), float(hi[k])), float(share[k]), float((losses[k] - best).mean()))
        for k, f in enumerate(tables)
    ]
    standings.sort(key=lambda s: s.regret)
    naive, budget = _naive(tables)
    naive_best = min(naive, key=lambda family: naive[family])
    warnings = []
    if standings[0].family != naive_best:
        warnings.append(
            f"the laws say {standings[0].family}, the largest measured rung says {naive_best}: "
            "the curves cross, or one is wrong"
        )
    if len(standings) > 1 and standings[0].p_best < 0.6:
        warnings.append(f"{standings[0].family} and {standings[1].family} cannot be told apart at this budget")
    return Comparison(
        float(compute), tuple(standings), standings[0].family, naive_best, naive, budget, level, tuple(warnings)
    )


def _naive(tables: Mapping[str, Table]) -> tuple[dict[str, float], float]:
    """The best loss of each family at the largest budget that all reached (within 15 %), else at each one's largest."""
    points = {family: frontier_points(*table) for family, table in tables.items()}
    budget = min(p.compute[-1] for p in points.values())
    naive = {}
    for family, p in points.items():
        nearest = int(np.argmin(np.abs(np.log(np.array(p.compute) / budget))))
        naive[family] = p.loss[nearest]
    return naive, budget
