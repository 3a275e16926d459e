"""Robust nonlinear least squares for many starts and replicates at once.

Everything is batched over a leading axis R (starts, bootstrap replicates, points of a profile), because a law has
2-7 parameters and 5-100 points: one run of SciPy costs milliseconds of Python, two hundred at once little more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Callable[[Array], tuple[Array, Array]]
"""theta (R, P) -> log predictions (R, m) and their derivatives (R, m, P)."""


class Prior(NamedTuple):
    """A Gaussian opinion on each parameter, (P,) or (R, P): `weight` is its worth in residual² per unit²."""

    mean: Array
    weight: Array

    def drawn(self, noise: float, rng: np.random.Generator, count: int) -> Prior:
        """`count` opinions, as uncertain as this one claims to be: replicates are no narrower than what is known."""
        known = self.weight > 0
        width = np.where(known, noise / np.sqrt(np.where(known, self.weight, 1.0)), 0.0)
        return Prior(self.mean + width * rng.standard_normal((count, self.mean.size)), self.weight)


class Solution(NamedTuple):
    """The minimisers (R, P), their summed objective (R,) and whether each one is a stationary point (R,)."""

    theta: Array
    objective: Array
    converged: NDArray[np.bool_]


def huber(residual: Array, delta: float) -> Array:
    """Huber's loss of each residual: r²/2 near zero, delta·(|r| - delta/2) beyond."""
    size = np.abs(residual)
    bent = np.minimum(size, delta)
    return np.asarray(bent * (size - 0.5 * bent))


def minimise(
    model: Model,
    starts: Array,
    target: Array,
    *,
    delta: float,
    lower: Array,
    upper: Array,
    weights: Array | None = None,
    prior: Prior | None = None,
    fixed: tuple[int, ...] = (),
    iterations: int = 200,
) -> Solution:
    """Minimise the weighted *sum* of Huber losses of `model(theta) - target`, from every start, inside a box.

    Levenberg-Marquardt on the Huber majoriser, with an active set for the box. `target` and `weights` are (m,) or
    (R, m); `fixed` names parameters that keep the value of their start. Never raises: look at `converged`.
    """
    theta = np.minimum(np.maximum(np.array(starts, dtype=np.float64), lower), upper)
    replicates, parameters = theta.shape
    target = np.broadcast_to(target, (replicates, target.shape[-1]))
    weights = np.ones_like(target) if weights is None else np.broadcast_to(weights, target.shape)
    mean, stiffness = prior if prior is not None else (np.zeros(parameters), np.zeros(parameters))
    mean, stiffness = np.broadcast_to(mean, theta.shape), np.broadcast_to(stiffness, theta.shape)
    free_by_choice = np.ones(parameters, dtype=bool)
    free_by_choice[list(fixed)] = False

    def evaluate(points: Array, rows: NDArray[np.intp] | slice) -> tuple[Array, Array, Array]:
        with np.errstate(all="ignore"):
            prediction, jacobian = model(points)
            residual = prediction - target[rows]
            objective = (weights[rows] * huber(residual, delta)).sum(1)
            objective += 0.5 * (stiffness[rows] * (points - mean[rows]) ** 2).sum(1)
        return residual, jacobian, np.where(np.isfinite(objective), objective, np.inf)

    diagonal, unit = np.arange(parameters), np.eye(parameters)
    damping = np.full(replicates, 1e-3)
    converged = np.zeros(replicates, dtype=bool)
    live = np.arange(replicates)
    residual, jacobian, objective = evaluate(theta, slice(None))
    for _ in range(iterations):
        if live.size == 0:
            break
        at = live if live.size < replicates else slice(None)  # which copies nothing
        point, r, jac = theta[at], residual[at], jacobian[at]
        size = np.maximum(np.abs(r), 1e-300)
        w = weights[at] * np.minimum(1.0, delta / size)
        weighted = jac * w[:, :, None]
        gradient = (r[:, None] @ weighted)[:, 0] + stiffness[at] * (point - mean[at])
        hessian = weighted.swapaxes(1, 2) @ jac
        hessian[:, diagonal, diagonal] += stiffness[at]
        pushing = ((point <= lower) & (gradient > 0)) | ((point >= upper) & (gradient < 0))
        free = free_by_choice & ~pushing
        gradient = np.where(free, gradient, 0.0)
        hessian = np.where(free[:, :, None] & free[:, None, :], hessian, 0.0)
        curvature = hessian[:, diagonal, diagonal]
        floor = 1e-12 * curvature.max(1, keepdims=True) + 1e-300
        hessian[:, diagonal, diagonal] += damping[at, None] * np.maximum(curvature, floor)
        hessian[:, diagonal, diagonal] += np.where(free, floor, 1.0)
        bad: NDArray[np.bool_] = np.zeros(live.size, dtype=np.bool_)
        if not (np.isfinite(hessian).all() and np.isfinite(gradient).all()):
            bad = np.logical_not(np.isfinite(hessian).all((1, 2)) & np.isfinite(gradient).all(1))
            hessian[bad], gradient[bad] = unit, 0.0
        step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        candidate = np.minimum(np.maximum(point + step, lower), upper)
        new_residual, new_jacobian, new_objective = evaluate(candidate, at)
        better = new_objective <= objective[at]
        gain = np.where(better, objective[at] - new_objective, 0.0)
        moved = np.abs(candidate - point).max(1)
        rows = live[better]
        theta[rows], objective[rows] = candidate[better], new_objective[better]
        residual[rows], jacobian[rows] = new_residual[better], new_jacobian[better]
        damped = np.minimum(np.maximum(damping[at] * np.where(better, 0.2, 6.0), 1e-12), 1e12)
        damping[at] = damped
        small = better & (gain <= 1e-9 * np.abs(objective[at]) + 1e-26) & (damped < 1e3)
        stuck = (moved <= 1e-12) | bad | (damped >= 1e12)
        converged[live[small | (stuck & ~bad)]] = True
        live = live[~(small | stuck)]
    return Solution(theta, objective, converged)


BEND = 2.0
WINSORISED = 0.92054
"""E min(Z², BEND²) of a standard normal Z."""


def robust_scale(residual: Array, parameters: int) -> float:
    """The standard deviation of the noise from residuals (m,), corrected for the parameters (Huber's proposal 2).

    Residuals beyond two standard deviations count as two, so that an outlier adds little; without one this is as sharp
    as the root mean square, which a median of absolute values is not.
    """
    freedom = max(residual.size - parameters, 1)
    scale = rms = float(np.sqrt(np.sum(residual**2) / freedom))
    if freedom <= 3:  # too few to call one of them an outlier
        return rms
    for _ in range(30):
        clipped = np.minimum(residual**2, (BEND * scale) ** 2)
        scale = float(np.sqrt(clipped.sum() / (WINSORISED * freedom)))
    return min(scale, rms)


# Variable projection: for each guess of the exponents the rest of a law is linear, and solved.
#
# A law such as E + A·n^-α + B·d^-β has two nonlinear parameters; a grid over them with the coefficients projected out
# cannot miss the valley that a local search from a handful of guesses misses (what went wrong in published fits).


def project(
    columns: Array, target: Array, delta: float, weights: Array | None = None, rounds: int = 4
) -> tuple[Array, Array]:
    """Non-negative coefficients (G, k) of `columns` (G, m, k) for log `target` (m,), and the summed Huber loss (G,),
    weighted by `weights` (m,).

    Minimises Huber of log(columns·coefficients) - target by reweighted least squares of relative errors; all 2^k - 1
    sets of positive coefficients are tried, so the answer is the exact non-negative one. k is 1 to 4.
    """
    guesses, _, k = columns.shape
    relative = columns * np.exp(-target)[:, None]
    given = np.ones(relative.shape[1]) if weights is None else weights
    weight = np.broadcast_to(given, relative.shape[:2])
    subsets = [np.array(s) for size in range(1, k + 1) for s in combinations(range(k), size)]
    coefficients, residual = np.zeros((guesses, k)), np.zeros(relative.shape[:2])
    for _ in range(rounds):
        weighted = relative * weight[:, :, None]
        gram, right = weighted.swapaxes(1, 2) @ relative, weighted.sum(1)
        best = np.full(guesses, np.inf)
        for s in subsets:
            # Columns differ by orders of magnitude: solve in units of their norms, with a tiny ridge.
            norm = np.sqrt(np.maximum(gram[:, s, s], 1e-300))
            scaled = gram[:, s[:, None], s] / (norm[:, :, None] * norm[:, None, :]) + 1e-12 * np.eye(s.size)
            part = np.linalg.solve(scaled, (right[:, s] / norm)[:, :, None])[:, :, 0] / norm
            # |1 - columns·part|² without its constant, because `part` solves the normal equations.
            value = np.where((part >= 0).all(1), -(part * right[:, s]).sum(1), np.inf)
            better = value < best
            best[better] = value[better]
            full = np.zeros((guesses, k))
            full[:, s] = part
            coefficients[better] = full[better]
        ratio = np.maximum((relative @ coefficients[:, :, None])[:, :, 0], 1e-9)
        residual = np.log(ratio)
        # Huber's weight, times what turns a squared relative error into a squared log error.
        off = np.where(np.abs(ratio - 1) < 1e-6, 1.0, ratio - 1)
        curvature = np.where(np.abs(ratio - 1) < 1e-6, 1.0, (residual / off) ** 2)
        bend = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        weight = given * bend * np.minimum(curvature, 1e3)
    return coefficients, (given * huber(residual, delta)).sum(1)
