"""How wide, deep or thick for a given compute (arXiv 2305.13035, eq. 3): f(x, t) = α·x^-a + (β·x^b + ξ)·t^-c + ε.

x is one dimension of the shape with the others held, t compute. Too small a dimension limits what can be reached,
too large a one slows getting there; the optimum x*(t) ∝ t^s with s = c / (a + b).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.checks import positive_columns
from isoflop.laws.profile import profile_interval
from isoflop.laws.records import Record
from isoflop.laws.solve import Array, Model, minimise, robust_scale
from isoflop.laws.varpro import project


@dataclass(frozen=True)
class ShapeLaw(Record):
    """The law's constants in the units of the table; `c_interval` is the 95 % profile interval of c."""

    alpha: float
    a: float
    beta: float
    b: float
    xi: float
    c: float
    epsilon: float
    c_interval: tuple[float, float]
    noise: float
    converged: bool
    agreement: float

    @property
    def exponent(self) -> float:
        """s of x*(t) ∝ t^s."""
        return self.c / (self.a + self.b)

    def predict(self, x: ArrayLike, t: ArrayLike) -> Array:
        """Loss of dimension x at compute t."""
        u, v = np.asarray(x, dtype=np.float64), np.asarray(t, dtype=np.float64)
        return np.asarray(self.alpha * u**-self.a + (self.beta * u**self.b + self.xi) * v**-self.c + self.epsilon)

    def optimal(self, t: ArrayLike) -> Array:
        """The dimension x* that minimises the loss at compute t."""
        ratio = self.alpha * self.a / (self.beta * self.b)
        return np.asarray((ratio * np.asarray(t, dtype=np.float64) ** self.c) ** (1.0 / (self.a + self.b)))


def fit_shape(x: ArrayLike, t: ArrayLike, loss: ArrayLike) -> ShapeLaw:
    """The shape law of runs that vary one dimension x at several computes t.

    Raises:
        LawError: fewer than 9 runs, three dimensions or three computes, or values not positive and finite.
    """
    u, v, z = positive_columns(x=x, t=t, loss=loss)
    if u.size < 9 or np.unique(u).size < 3 or np.unique(v).size < 3:
        raise LawError("the shape law has 7 parameters: give 9 runs or more at three dimensions and three computes")
    u, v, z = np.log(u), np.log(v), np.log(z)
    centre = float(u.mean()), float(v.mean())
    model = _model(u - centre[0], v - centre[1])
    lower = np.array([z.min() - 14, 0.02, z.min() - 14, 0.02, 0.0, 0.02, 0.0])
    upper = np.array([z.max() + 2, 4.0, z.max() + 2, 4.0, np.exp(z.max()) * 3, 3.0, np.exp(z.min()) * 0.9999])
    theta = _starts(u - centre[0], v - centre[1], z)
    delta, noise = 0.03, 0.0
    for _ in range(8):
        solution = minimise(model, theta, z, delta=delta, lower=lower, upper=upper)
        theta = solution.theta[np.argsort(solution.objective, kind="stable")]
        before, noise = noise, max(robust_scale(z - model(theta[:1])[0][0], 7), 1e-7)
        delta = 1.345 * noise
        if abs(noise - before) <= 0.02 * noise:
            break
    solution = minimise(model, theta, z, delta=delta, lower=lower, upper=upper, iterations=1000)
    k = int(np.argmin(solution.objective))
    log_alpha, a, log_beta, b, xi, c, epsilon = (float(p) for p in solution.theta[k])
    interval = profile_interval(model, solution.theta[k], z, 5, noise=noise, lower=lower, upper=upper)
    close = solution.objective - solution.objective[k] <= 1e-3 * noise**2
    shrink = float(np.exp(c * centre[1]))
    alpha, beta = float(np.exp(log_alpha + a * centre[0])), float(np.exp(log_beta - b * centre[0])) * shrink
    converged, agreement = bool(solution.converged[k]), float(close.mean())
    return ShapeLaw(alpha, a, beta, b, xi * shrink, c, epsilon, interval, noise, converged, agreement)


def _model(u: Array, v: Array) -> Model:
    """theta = (log α, a, log β, b, ξ, c, ε) for centred logs of x and t."""

    def evaluate(theta: Array) -> tuple[Array, Array]:
        log_alpha, a, log_beta, b, xi, c, epsilon = (theta[:, k, None] for k in range(7))
        limit = np.exp(log_alpha - a * u)
        cost, time = np.exp(log_beta + b * u), np.exp(-c * v)
        slow = cost * time
        y = limit + slow + xi * time + epsilon
        parts = [limit, -u * limit, slow, u * slow, time, -v * (slow + xi * time), np.ones_like(y)]
        return np.log(y), np.stack([np.broadcast_to(p, y.shape) for p in parts], axis=2) / y[:, :, None]

    return evaluate


def _starts(u: Array, v: Array, z: Array, keep: int = 16) -> Array:
    grid = np.geomspace(0.1, 1.6, 7)
    a, b, c = (g.ravel() for g in np.meshgrid(grid, grid, np.geomspace(0.05, 1.0, 8)))
    time = np.exp(-c[:, None] * v)
    columns = np.stack([np.exp(-a[:, None] * u), np.exp(b[:, None] * u) * time, time, np.ones_like(time)], axis=2)
    coefficients, objective = project(columns, z, 0.03)
    best = np.argsort(objective, kind="stable")[:keep]
    alpha, beta, xi, epsilon = coefficients[best].T
    tiny = 1e-5 * np.exp(z.min())
    log_alpha, log_beta = np.log(np.maximum(alpha, tiny)), np.log(np.maximum(beta, tiny))
    return np.stack([log_alpha, a[best], log_beta, b[best], xi, c[best], epsilon], axis=1)
