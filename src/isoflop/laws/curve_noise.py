"""How noisy the points of a curve are, read off neighbours; whether they were smoothed; thinning where they abound."""

import numpy as np

from isoflop.laws.solve import Array

DENSE = 20
"""A curve with as many different x shows its noise, and is backtested by distance instead of point by point."""
MOST = 200
"""More points than about this are averaged: a log of every step says no more about the law, and takes minutes."""


def thinned(t: Array, z: Array) -> tuple[Array, Array]:
    """Averages of equally many neighbours where there are more than `MOST` points, of fewer where those lie far apart.

    Args:
        t, z: logs of x and y, sorted by t, (m,). The last point's t stays the last.
    """
    if t.size <= MOST:
        return t, z
    neighbours, near = np.arange(t.size) * MOST // t.size, np.floor(t / 0.1)
    _, cell, count = np.unique(neighbours + 1j * near, return_inverse=True, return_counts=True)
    middle, level = np.bincount(cell, t) / count, np.bincount(cell, z) / count
    order = np.argsort(middle, kind="stable")
    return np.append(middle[order][:-1], t[-1]), level[order]


def scatter_of_neighbours(t: Array, z: Array) -> float:
    """Standard deviation of neighbouring points about their local line: noise as the table shows it."""
    recent = t >= -np.log(10.0)
    if np.unique(t[recent]).size >= DENSE:  # early points are steeper and fewer in a bin
        t, z = t[recent], z[recent]
    unique, index = np.unique(t, return_inverse=True)
    if unique.size < 6:
        return 0.01
    level = np.bincount(index, z) / np.bincount(index)
    left, right = np.diff(unique)[:-1], np.diff(unique)[1:]
    middle = (right * level[:-2] + left * level[2:]) / (left + right)
    spread = 1.0 + (right**2 + left**2) / (left + right) ** 2
    deviation = (level[1:-1] - middle) / np.sqrt(spread)
    # A handful of points may lie on a line by luck: do not believe in less than 0.3 % there.
    return max(float(np.sqrt(np.mean(deviation**2))), 1e-5 if unique.size >= DENSE else 3e-3)


def measurement_noise(t: Array, z: Array, scatter: float) -> tuple[float, bool]:
    """Noise of one raw measurement, and whether the table holds smoothed values.

    Published curves are often medians of ever wider bins made monotone. Tell-tale: no rise between neighbours though
    scatter and slope together should give some. A bin k times the narrowest one then averages k measurements.
    """
    if t.size < DENSE or np.unique(t).size < t.size:
        return scatter, False
    smooth = np.polyval(np.polyfit(t, z, 4), t)
    residual = z[t > -1.4] - np.polyval(np.polyfit(t[t > -1.4], z[t > -1.4], 2), t[t > -1.4])
    wide = float(np.sqrt((residual**2).sum() / max(residual.size - 3, 1)))
    step = np.abs(np.diff(smooth))
    from scipy.special import ndtr  # 0.2 s to import: not before it is needed

    expected = float(ndtr(-step / (np.sqrt(2.0) * wide)).sum())
    rises = int((np.diff(z) > 0).sum())
    if expected < 2.0:  # too smooth to tell: half of what smoothing may hide is added
        return 1.5 * scatter, False
    if rises > 0.1 * expected:
        return scatter, False
    width = np.diff(np.exp(t))
    per_bin = min(float(np.median(width[-5:]) / width.min()), 100.0)
    return 1.15 * scatter * float(np.sqrt(per_bin)), True
