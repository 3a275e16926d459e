"""Variable projection: for each guess of the exponents the rest of a law is linear, and solved.

A law such as E + A·n^-α + B·d^-β has two nonlinear parameters; a grid over them with the coefficients projected out
cannot miss the valley that a local search from a handful of guesses misses (what went wrong in published fits).
"""

from itertools import combinations

import numpy as np

from isoflop.laws.solve import Array, huber


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
        gram = np.einsum("gmi,gm,gmj->gij", relative, weight, relative)
        right = np.einsum("gmi,gm->gi", relative, weight)
        best = np.full(guesses, np.inf)
        for s in subsets:
            # Columns differ by orders of magnitude: solve in units of their norms, with a whisper of a ridge.
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
        ratio = np.maximum(np.einsum("gmi,gi->gm", relative, coefficients), 1e-9)
        residual = np.log(ratio)
        # Huber's weight, times what turns a squared relative error into a squared log error.
        off = np.where(np.abs(ratio - 1) < 1e-6, 1.0, ratio - 1)
        curvature = np.where(np.abs(ratio - 1) < 1e-6, 1.0, (residual / off) ** 2)
        bend = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        weight = given * bend * np.minimum(curvature, 1e3)
    return coefficients, (given * huber(residual, delta)).sum(1)
