"""What a learning curve will end with, told from halfway by the curves that have ended.

log end = a + b·log halfway + c·features + noise, by Bayesian linear regression (Gelman et al., Bayesian Data Analysis,
chapter 14): the end of a run differs from its middle by a cooldown, noise, and what is learned meanwhile, and all of
these are measured on whole runs alike. A power law through the curve itself, continued, errs more on real runs
(docs/planner.md): its slope is noise, and it knows of no cooldown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError

Array = NDArray[np.float64]

NOISE, NOISE_WORTH = 0.06, 4.0
"""Deviation of a log end from what is expected before any run has ended, and how many runs that opinion is worth."""
SLOPE, FEATURE = 0.3, 0.1
"""How far b may be from 1, and a coefficient of a feature from 0 (standard deviations, before any run has ended)."""
FEWEST = 8


@dataclass(frozen=True)
class CurveEnds:
    """The regression: coefficients (1, log halfway, features) about `centre`, their covariance, and the noise."""

    mean: Array
    covariance: Array
    noise: float
    degrees: float
    centre: Array

    def line(self, features: Sequence[float]) -> tuple[float, float]:
        """Offset and slope of the expected log end over the log of the halfway loss, for a run of these features."""
        x = np.array([0.0, *features]) - self.centre
        slope = float(self.mean[1])
        return float(self.mean[0] + self.mean[1] * x[0] + self.mean[2:] @ x[1:]), slope

    def predict(self, halfway: ArrayLike, features: Sequence[float]) -> tuple[Array, Array]:
        """Expected log end and its deviation (k,), of runs with these halfway losses (k,) and the same features."""
        at = np.atleast_1d(np.log(np.asarray(halfway, dtype=np.float64)))
        x = np.column_stack([at, np.tile(np.asarray(features, dtype=np.float64), (at.size, 1))]) - self.centre
        x = np.column_stack([np.ones(at.size), x])
        spread = np.einsum("ki,ij,kj->k", x, self.covariance, x)
        return np.asarray(x @ self.mean), np.sqrt(self.noise**2 + spread)

    def probability_below(self, end: float, halfway: ArrayLike, features: Sequence[float], doubt: float = 0.0) -> Array:
        """Probability (k,) that runs with these halfway losses end below `end`, whose log has the deviation `doubt`."""
        mean, deviation = self.predict(halfway, features)
        from scipy.special import stdtr  # not before it is needed

        return np.asarray(stdtr(self.degrees, (math.log(end) - mean) / np.hypot(deviation, doubt)))


def fit_curve_ends(halfway: ArrayLike, features: ArrayLike, ends: ArrayLike) -> CurveEnds:
    """The regression of `ends` (m,) on `halfway` (m,), losses both, and `features` (m, p) of the runs.

    Raises LawError for fewer than `FEWEST` runs, or losses that are not positive and finite.
    """
    at, y = np.asarray(halfway, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    if at.size < FEWEST:
        raise LawError(f"{at.size} learning curves are too few to tell how one ends: at least {FEWEST}")
    if not (np.isfinite(at).all() and np.isfinite(y).all() and at.min() > 0 and y.min() > 0):
        raise LawError("a learning curve needs losses that are positive and finite")
    x = np.column_stack([np.log(at), np.asarray(features, dtype=np.float64).reshape(at.size, -1)])
    centre = x.mean(axis=0)
    x = np.column_stack([np.ones(at.size), x - centre])
    y = np.log(y)
    opinion = np.array([y.mean(), 1.0, *np.zeros(x.shape[1] - 2)])
    width = np.array([1.0, SLOPE, *np.full(x.shape[1] - 2, FEATURE)])
    noise = NOISE
    for _ in range(20):
        precision = x.T @ x / noise**2 + np.diag(width**-2)
        covariance = np.linalg.inv(precision)
        mean = opinion + covariance @ (x.T @ (y - x @ opinion)) / noise**2
        used = float(np.trace(covariance @ (x.T @ x))) / noise**2  # parameters that the runs decide
        degrees = NOISE_WORTH + at.size - used
        noise = math.sqrt((NOISE_WORTH * NOISE**2 + float(((y - x @ mean) ** 2).sum())) / degrees)
    return CurveEnds(mean, np.asarray(covariance), noise, degrees, centre)
