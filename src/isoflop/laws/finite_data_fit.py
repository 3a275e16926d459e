"""The numerics of the finite-data form: its derivatives, starts, joint fit and rolling origins; see `finite_data`."""

import numpy as np

from isoflop.laws.solve import Array, Model, minimise, robust_scale

NAMES = ("log_a", "log_b", "e", "alpha", "beta", "gamma", "log_k", "log_r", "log_h", "lambda", "kappa", "mu")
LOWER = np.array([-9.0, -9.0, 0.0, 0.01, 0.01, -1.0, -1.2, -2.0, -20.0, 0.0, 0.1, 0.0])
UPPER = np.array([3.0, 3.0, 1.0, 2.5, 3.0, 1.5, 1.4, 9.0, 0.0, 2.5, 2.5, 2.5])
NO_REPEATS = {"log_r": 9.0, "log_h": -20.0, "lambda": 0.0, "kappa": 1.0, "mu": 0.0}
VARIANTS: dict[str, dict[str, float]] = {
    "additive": {"gamma": 0.0, "log_k": 0.0},
    "interacting": {"log_k": 0.0},
    "capped": {"gamma": 0.0},
    "capped interacting": {},
}
"""Name → the parameters it holds still; the capped ones need the error of chance T."""
HELD_BACK = (1.1, 1.6, 2.3)
"""Rolling origins: log of the factor of compute that is held back (3, 5, 10)."""


def held_parameters(variant: str, repeats: bool) -> tuple[int, ...]:
    """Which parameters a variant holds still."""
    held = {**VARIANTS[variant], **({} if repeats else NO_REPEATS)}
    return tuple(NAMES.index(name) for name in held)


def upper_bounds(z: Array, top: float | None) -> Array:
    """The upper end of the box (12,) for log errors z."""
    upper = UPPER.copy()
    upper[2] = float(np.exp(z.min())) * 0.999
    if top is None:
        upper[:2] = z.max() + 6.0
    return upper


def finite_data_model(x: Array, y: Array, u: Array, top: float | None, repeats: bool) -> Model:
    """log y of theta in the order of `NAMES`, with its derivatives, for centred logs of n, images seen and unique."""
    epochs = np.exp(y - u)
    extra = np.maximum(epochs - 1.0, 0.0)
    again = np.log(np.maximum(epochs - 1.0 + np.exp(-epochs), 1e-12))

    def evaluate(theta: Array) -> tuple[Array, Array]:
        log_a, log_b, e, alpha, beta, gamma, log_k, log_r, log_h, lam, kappa, mu = (
            theta[:, i, None] for i in range(12)
        )
        if repeats:
            limit = np.exp(log_r)
            left = np.exp(-extra / limit)
            log_d = u + np.log(np.minimum(epochs, 1.0) + limit * (1.0 - left))
            d_limit = limit * (1.0 - left - extra / limit * left) / (np.minimum(epochs, 1.0) + limit * (1.0 - left))
            hurt = np.exp(log_h + lam * x + kappa * again - mu * u)
        else:
            log_d, d_limit, hurt = np.broadcast_arrays(y, 0.0 * y, 0.0 * y)
        size = np.exp(log_a - alpha * x)
        data = np.exp(log_b - gamma * x - beta * log_d)
        q = size + data + hurt
        log_q = np.log(q)
        if top is None:
            share, span, g, d_k = q, np.ones_like(e), np.ones_like(q), np.zeros_like(q)
        else:
            k = np.exp(log_k)
            tail = np.logaddexp(0.0, -k * log_q)
            share, span = np.exp(-tail / k), top - e
            g = 1.0 / (1.0 + np.exp(np.clip(k * log_q, -700, 700)))
            d_k = tail / k + g * log_q  # times k: the derivative in log k
        value = e + span * share
        slope = span * share * g / q  # d value / d q
        parts = [
            slope * size, slope * data, 1.0 - (share if top is not None else 0.0), -x * slope * size,
            -log_d * slope * data, -x * slope * data, span * share * d_k, -beta * d_limit * slope * data,
            slope * hurt, x * slope * hurt, again * slope * hurt, -u * slope * hurt,
        ]  # fmt: skip
        return np.log(value), np.stack([np.broadcast_to(p, value.shape) for p in parts], axis=2) / value[:, :, None]

    return evaluate


def fit_finite_theta(
    columns: tuple[Array, Array, Array], z: Array, top: float | None, repeats: bool, variant: str, scan: int = 512
) -> tuple[Array, float, float, float, bool]:
    """theta, noise, Huber's delta, agreement of the starts, convergence. The scan of starts is always the same."""
    model, fixed, upper = (
        finite_data_model(*columns, top, repeats),
        held_parameters(variant, repeats),
        upper_bounds(z, top),
    )
    rng = np.random.default_rng(0)
    low = np.array([-5.0, -5.0, 0.0, 0.1, 0.1, -0.3, -0.5, 1.0, -10.0, 0.1, 0.3, 0.0])
    high = np.array([0.0, 0.0, 0.9 * upper[2], 0.9, 1.2, 0.6, 1.2, 7.0, -2.0, 1.2, 1.2, 1.0])
    starts = rng.uniform(low, high, (scan, 12))
    if top is None:
        starts[:, :2] += z.max()
    for name, value in {**VARIANTS[variant], **({} if repeats else NO_REPEATS)}.items():
        starts[:, NAMES.index(name)] = value
    with np.errstate(all="ignore"):
        misfit = np.abs(model(starts)[0] - z).sum(1)
    theta = starts[np.argsort(np.where(np.isfinite(misfit), misfit, np.inf), kind="stable")[:16]]
    delta, noise = 0.05, 0.0
    for round_ in range(5):
        solution = minimise(
            model, theta, z, delta=delta, lower=LOWER, upper=upper, fixed=fixed, iterations=60 if round_ else 150
        )
        order = np.argsort(solution.objective, kind="stable")
        theta = solution.theta[order]
        before = noise
        noise = max(robust_scale(z - model(theta[:1])[0][0], len(NAMES) - len(fixed)), 1e-6)
        delta = 1.345 * noise
        if abs(noise - before) <= 0.02 * noise:
            break
    spread = solution.objective[order] - solution.objective[order[0]]
    return theta[0], noise, delta, float(np.mean(spread <= 0.05 * noise**2)), bool(solution.converged[order[0]])


def backtest_finite_data(
    columns: tuple[Array, Array, Array], z: Array, top: float | None, repeats: bool, variant: str
) -> tuple[Array, Array, Array]:
    """Distances, errors and origins of predictions of the runs of most compute from the others."""
    compute = columns[0] + columns[1]
    parameters = len(NAMES) - len(held_parameters(variant, repeats))
    distances, errors, origins = [], [], []
    for k, held in enumerate(HELD_BACK):
        past = compute <= compute.max() - held
        if past.sum() < parameters + 3 or past.all():
            continue
        x, y, u = columns
        theta = fit_finite_theta((x[past], y[past], u[past]), z[past], top, repeats, variant, scan=256)[0]
        later = finite_data_model(x[~past], y[~past], u[~past], top, repeats)
        errors += (z[~past] - later(theta[None])[0][0]).tolist()
        distances += (compute[~past] - compute[past].max()).tolist()
        origins += [k] * int((~past).sum())
    return np.array(distances), np.array(errors), np.array(origins)
