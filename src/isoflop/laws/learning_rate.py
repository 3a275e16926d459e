"""The best learning rate as a power law of size (and images): lr*(n, d) = k·n^p·d^q.

Each group of runs that differ only in learning rate gives one optimum, by a parabola in log lr through its best few
points; diverged runs are not used.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.columns import JsonRecord
from isoflop.laws.solve import Array


@dataclass(frozen=True)
class Optimum(JsonRecord):
    """The best learning rate of one group: `edge` is "low" or "high" when it lies on the end of the grid tried."""

    n: float
    d: float | None
    learning_rate: float
    loss: float
    tried: int
    edge: str


@dataclass(frozen=True)
class LearningRateLaw(JsonRecord):
    """lr*(n, d) = k·n^size·d^images (images is 0 where the table does not tell).

    `spread` is the standard deviation of log lr of the optima about the law; `optima` are the groups; `lr_range` the
    rates tried, which predictions leave by at most one step of the grid.
    """

    k: float
    size: float
    images: float
    spread: float
    optima: tuple[Optimum, ...]
    lr_range: tuple[float, float]
    step: float
    warnings: tuple[str, ...] = ()

    def predict(self, n: ArrayLike, d: ArrayLike | None = None) -> Array:
        """The best learning rate at n (training FLOPs an image) and, where the law knows images, d."""
        value = self.k * np.asarray(n, dtype=np.float64) ** self.size
        if self.images:
            if d is None:
                raise LawError("this learning-rate law depends on the images seen: give d")
            value = value * np.asarray(d, dtype=np.float64) ** self.images
        return np.asarray(np.clip(value, self.lr_range[0] / self.step, self.lr_range[1] * self.step))


def fit_learning_rate(n: ArrayLike, lr: ArrayLike, loss: ArrayLike, d: ArrayLike | None = None) -> LearningRateLaw:
    """The learning-rate law of runs that tried several rates at some sizes.

    Args:
        n: training FLOPs per image, (m,). lr: learning rates, (m,). loss: held-out losses, (m,); NaN or inf is a
            run that diverged, which rules its rate out. d: images seen, (m,), None if all alike.

    Raises:
        LawError: no group with a finite loss, sizes or rates not positive.
    """
    x, r, z = (np.asarray(v, dtype=np.float64) for v in (n, lr, loss))
    images = None if d is None else np.asarray(d, dtype=np.float64)
    if not (x.ndim == 1 and x.size and x.shape == r.shape == z.shape and (images is None or images.shape == x.shape)):
        raise LawError("the learning-rate law needs columns n, lr, loss (and d) of equal length, at least one run")
    if not (np.isfinite(x) & (x > 0) & np.isfinite(r) & (r > 0)).all():
        raise LawError("sizes and learning rates must be positive and finite")
    finite = np.isfinite(z) & (z > 0)
    if not finite.any():
        raise LawError("every run of the learning-rate search diverged")
    # Images differ by rounding between runs of one budget: 1 % apart is the same group.
    key = np.round(np.log(x), 4) if images is None else np.round(np.log(x), 4) + 1j * np.round(np.log(images), 2)
    optima = []
    for group in np.unique(key[finite]):
        here = np.flatnonzero((key == group) & finite)
        optima.append(_optimum(x[here], r[here], z[here], None if images is None else images[here], r[key == group]))
    rates = np.unique(np.round(np.log(r), 6))
    step = float(np.exp(np.median(np.diff(rates)))) if rates.size > 1 else 1.0
    return _power_law(tuple(optima), (float(r.min()), float(r.max())), step)


def _optimum(x: Array, r: Array, z: Array, d: Array | None, tried: Array) -> Optimum:
    t = np.log(r)
    best = int(np.argmin(z))
    at, edge = float(t[best]), ""
    # The bowl is steeper on the high side; only rates within a factor of 3 and 15 % of the best loss shape it.
    near = (np.abs(t - t[best]) <= np.log(3.2)) & (np.log(z / z[best]) <= 0.15)
    if tried.size >= 3 and r[best] == tried.min():
        edge = "low"
    elif tried.size >= 3 and r[best] == tried.max():
        edge = "high"
    elif np.unique(t[near]).size >= 3:
        curvature, slope, _ = np.polyfit(t[near] - t[best], np.log(z[near]), 2)
        if curvature > 0:
            lo, hi = t[t < t[best]].max(), t[t > t[best]].min()
            at = float(np.clip(t[best] - slope / (2 * curvature), 0.5 * (lo + at), 0.5 * (hi + at)))
    images = None if d is None else float(np.median(d))
    return Optimum(float(x[best]), images, float(np.exp(at)), float(z[best]), int(tried.size), edge)


def _power_law(optima: tuple[Optimum, ...], lr_range: tuple[float, float], step: float) -> LearningRateLaw:
    n = np.log([o.n for o in optima])
    y = np.log([o.learning_rate for o in optima])
    d = np.log([1.0 if o.d is None else o.d for o in optima])
    # An optimum on the edge is a bound, a group with one rate is no search: both count little.
    weight = np.array([0.25 if o.edge or o.tried < 3 else 1.0 for o in optima])
    columns = [np.ones_like(n)]
    with_size, with_images = bool(np.ptp(n) > 0.3), bool(len(optima) >= 4 and np.ptp(d) > 0.3)
    if with_size:
        columns.append(n - n.mean())
    if with_images:
        columns.append(d - d.mean())
    design = np.stack(columns, axis=1)
    # Slopes are held near 0 by an opinion worth a third of one point a decade: two noisy optima make no law.
    ridge = np.diag([0.0] + [0.3] * (design.shape[1] - 1))
    for _ in range(5):
        gram = design.T @ (weight[:, None] * design) + ridge
        solution = np.linalg.solve(gram, design.T @ (weight * y))
        residual = y - design @ solution
        scale = max(1.4826 * float(np.median(np.abs(residual))), 0.1)
        weight = np.array([0.25 if o.edge or o.tried < 3 else 1.0 for o in optima]) * np.minimum(
            1.0, 1.345 * scale / np.maximum(np.abs(residual), 1e-12)
        )
    size = float(solution[1]) if with_size else 0.0
    images = float(solution[-1]) if with_images else 0.0
    constant = float(solution[0]) - size * float(n.mean()) * with_size - images * float(d.mean()) * with_images
    spread = float(np.sqrt((residual**2).sum() / max(len(optima) - design.shape[1], 1)))
    warnings = []
    on_edge = [o for o in optima if o.edge]
    if on_edge:
        sides = " and ".join(sorted({o.edge for o in on_edge}))
        warnings.append(
            f"{len(on_edge)} of {len(optima)} best learning rates are at the {sides} edge of the grid: extend it"
        )
    if not with_size:
        warnings.append("one size only: the learning rate is taken to be the same for all sizes")
    if len(optima) - len(on_edge) < 3:
        warnings.append("fewer than 3 learning-rate optima inside their grids: the law is a guess")
    return LearningRateLaw(
        float(np.exp(constant)), size, images, spread, optima, lr_range, max(step, 1.0), tuple(warnings)
    )
