"""`fractals?classes=1000&zipf=1.5&turn=1&zoom=0.5&images=N`: generated pictures, unlimited without `images`."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.order import derive_key, uniforms
from isoflop.data.source import Source, Split, mean_and_std
from isoflop.errors import DataError

# Pictures made by formula: fractals of iterated function systems, in unlimited number, each a pure function of
# (seed, index).
#
# A category is an iterated function system of 2–4 affine maps, parametrised by singular values so that its attractor is
# neither a point nor a blur (Anderson and Farrell, "Improving Fractal Pre-training", arXiv 2110.03091, section 3.2),
# and kept only if it fills enough of the picture (the filling-rate check of FractalDB, arXiv 2101.08515). An instance
# is one category's attractor, turned, scaled, placed and sampled at random. Labels follow Zipf's law: with few or
# balanced categories the loss falls off a cliff instead of along a power law.
#
# The chaos game is played once per category, at start (0.3 s for 1,000 categories); an instance is a window of that
# orbit.


Orbits = NDArray[np.complex64]

_LARGEST_CATEGORIES = 20_000
_ORBIT = 2048  # points kept per category
_CHAINS = 128  # orbits played side by side for one category
_BURN_IN = 16  # steps until a chain has reached the attractor
_LARGEST_WINDOW = 2048
_FILLING_GRID = 32
_SMALLEST_FILLING = 0.2
_BATCH = 64  # pictures drawn at a time: their points stay in the cache
_BLOCK = 128  # categories made at a time, for the same reason
_BRIGHTNESS = (255 * (1 - 0.5 ** np.arange(9))).astype(np.uint8)  # by the number of points on a pixel


def zipf_probabilities(num_categories: int, exponent: float) -> NDArray[np.float64]:
    """The share of each category, proportional to rank^-exponent; shape (num_categories,), sums to 1."""
    shares = np.arange(1, num_categories + 1, dtype=np.float64) ** -exponent
    return np.asarray(shares / shares.sum())


@lru_cache(maxsize=4)
def orbits(num_categories: int, seed: int) -> Orbits:
    """The attractors as points of the complex unit disc, shape (num_categories, 4096): 2,048 points, then the first
    again.

    Category c depends on (seed, c) alone: more categories leave the first ones as they are.
    """
    if not 2 <= num_categories <= _LARGEST_CATEGORIES:
        raise DataError(f"fractals need between 2 and {_LARGEST_CATEGORIES} categories, not {num_categories}")
    key = derive_key("fractal categories", seed)
    points = np.empty((num_categories, _ORBIT + _LARGEST_WINDOW), dtype=np.complex64)
    for start in range(0, num_categories, _BLOCK):
        pending = np.arange(start, min(start + _BLOCK, num_categories), dtype=np.int64)
        attempt = 0
        while pending.size:
            candidates = _framed(_play(*_function_systems(key, attempt, pending), key))
            accepted = _filling(candidates[:, : _ORBIT // 2]) >= _SMALLEST_FILLING
            points[pending[accepted], :_ORBIT] = candidates[accepted]
            pending = pending[~accepted]
            attempt += 1
    points[:, _ORBIT:] = points[:, :_LARGEST_WINDOW]
    points.flags.writeable = False
    return points


def _function_systems(
    key: int, attempt: int, categories: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Matrices (n, 4, 2, 2), shifts (n, 4, 2) and cumulative choice probabilities (n, 4) of candidate systems.

    A matrix is R(θ)·diag(σ1, σ2)·R(φ)·diag(±1, ±1) with 1 ≥ σ1 ≥ σ2 ≥ 0, and Σ(σ1 + 2σ2) over the m maps of a system
    is drawn from [(5+m)/2, (6+m)/2], the range in which attractors have a good geometry (arXiv 2110.03091, equations
    4–6).
    """
    n = len(categories)
    draws = uniforms(key, attempt, categories, 2 + 4 * 8)
    num_maps = 2 + (draws[:, 0] * 3).astype(np.int64)
    remaining = (5 + num_maps + draws[:, 1]) / 2
    matrices, shifts, weights = np.zeros((n, 4, 2, 2)), np.zeros((n, 4, 2)), np.zeros((n, 4))
    for i in range(4):
        used = i < num_maps
        u = draws[:, 2 + 8 * i : 10 + 8 * i]
        # The maps still to come can take at most 3 each, so this one takes at least `least`; the last one takes all
        # that is left.
        least = np.maximum(remaining - 3 * (num_maps - 1 - i), 0)
        sigma1 = _between(least / 3, np.minimum(remaining, 1), u[:, 0])
        sigma2 = _between(np.maximum((least - sigma1) / 2, 0), np.minimum((remaining - sigma1) / 2, sigma1), u[:, 1])
        remaining = np.where(used, remaining - sigma1 - 2 * sigma2, remaining)
        stretched = _rotations(u[:, 2]) * np.stack([sigma1, sigma2], axis=-1)[:, None, :]
        signs = np.where(u[:, 4:6] < 0.5, -1.0, 1.0)
        matrices[:, i] = stretched @ _rotations(u[:, 3]) * signs[:, None, :]
        shifts[:, i] = 2 * u[:, 6:8] - 1
        # A map is chosen in proportion to the area it covers; the floor keeps flat maps alive.
        weights[:, i] = np.where(used, np.maximum(sigma1 * sigma2, 0.01), 0)
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    return matrices, shifts, cumulative


def _between(low: NDArray[np.float64], high: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (np.maximum(high, low) - low) * u


def _rotations(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices (n, 2, 2) by `turns` (n,) of a full turn."""
    cosine, sine = np.cos(2 * math.pi * turns), np.sin(2 * math.pi * turns)
    return np.stack([np.stack([cosine, -sine], axis=-1), np.stack([sine, cosine], axis=-1)], axis=-2)


def _play(
    matrices: NDArray[np.float64], shifts: NDArray[np.float64], cumulative: NDArray[np.float64], key: int
) -> Orbits:
    """The chaos game: 2,048 points (n, 2048) of each system's attractor, from 128 chains of 16 steps after the
    burn-in.
    """
    n = len(matrices)
    steps = _BURN_IN + _ORBIT // _CHAINS
    choices = uniforms(key, -1, np.arange(steps, dtype=np.int64), _CHAINS)  # every system plays with the same dice
    maps = np.concatenate([matrices.reshape(n, 4, 4), shifts], axis=-1).astype(np.float32)
    x = y = np.zeros((n, _CHAINS), dtype=np.float32)
    points = np.empty((n, steps - _BURN_IN, _CHAINS), dtype=np.complex64)
    system = np.arange(n)[:, None]
    for step in range(steps):
        chosen = (choices[step] >= cumulative[:, :3, None]).sum(axis=1)  # (n, chains)
        a, b, c, d, e, f = np.moveaxis(maps[system, chosen], -1, 0)
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= _BURN_IN:
            points[:, step - _BURN_IN].real = x
            points[:, step - _BURN_IN].imag = y
    return points.reshape(n, _ORBIT)


def _framed(points: Orbits) -> Orbits:
    """The same points (n, P), centred and scaled into the unit disc; the few that lie outside are mirrored into it."""
    some = points[:, :: _ORBIT // 512]  # enough for the quantiles, which are what takes time
    x, y = (np.quantile(part, (0.01, 0.99), axis=1).mean(axis=0) for part in (some.real, some.imag))
    centre = (x + 1j * y)[:, None].astype(np.complex64)
    radius = np.quantile(np.abs(some - centre), 0.98, axis=1, keepdims=True)
    centred = points - centre
    framed = centred / np.maximum(radius, 1e-6)
    framed /= np.maximum(np.abs(framed), 1) ** 2
    return np.asarray(framed, dtype=np.complex64)


def _filling(points: Orbits) -> NDArray[np.float64]:
    """The share (n,) of a 32×32 grid's cells that the points (n, P) touch."""
    cells = _cells(points * np.float32(0.999) + np.complex64(1 + 1j), _FILLING_GRID / 2, _FILLING_GRID)
    return np.asarray((_counts(cells, _FILLING_GRID) > 0).mean(axis=1))


def _cells(points: Orbits, scale: float, size: int) -> NDArray[np.intp]:
    """The pixel number (n, P), row by row, of points (n, P) whose parts lie in [0, size/scale)."""
    coordinates = (points * np.float32(scale)).view(np.float32).astype(np.int32)
    columns, rows = coordinates[:, 0::2], coordinates[:, 1::2]
    return (rows * np.int32(size) + columns).astype(np.intp)


def _counts(cells: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """How many points fall on each pixel, shape (n, size²)."""
    n = len(cells)
    flat = cells + (np.arange(n) * size * size)[:, None]
    return np.bincount(flat.ravel(), minlength=n * size * size).reshape(n, size * size)


def draw(
    indices: NDArray[np.int64],
    *,
    size: int,
    shares: NDArray[np.float64],
    channels: int = 1,
    seed: int = 0,
    turn: float = 1.0,
    zoom: float = 0.5,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures (n, channels, size, size) and categories (n,) of the instances `indices` (n,).

    `shares` is the probability of each category, `turn` the range of angles as a share of the full circle, `zoom` the
    smallest radius as a share of the picture's: what varies less is learned from fewer pictures. With 3 channels,
    each picture is drawn in a colour of its own. The k-th picture depends on indices[k] and the other arguments
    alone, not on its neighbours.
    """
    attractors = orbits(len(shares), seed)
    limits = np.cumsum(shares)[:-1]
    pictures = np.empty((len(indices), channels, size, size), dtype=np.uint8)
    categories = np.empty(len(indices), dtype=np.int64)
    key = derive_key("fractal instances", seed)
    for start in range(0, len(indices), _BATCH):
        batch = slice(start, start + _BATCH)
        u = uniforms(key, 0, indices[batch], 9)
        categories[batch] = np.searchsorted(limits, u[:, 0], side="right")
        grey = _BRIGHTNESS[np.minimum(_draw_batch(attractors, categories[batch], u[:, 1:6], size, turn, zoom), 8)]
        grey = grey.reshape(-1, 1, size, size)
        if channels == 1:
            pictures[batch] = grey
        else:
            colour = (64 + 192 * u[:, 6:9]).astype(np.uint16)[:, :, None, None]
            pictures[batch] = (grey * colour) >> 8
    return pictures, categories


def _draw_batch(
    attractors: Orbits, categories: NDArray[np.int64], u: NDArray[np.float64], size: int, turn: float, zoom: float
) -> NDArray[np.intp]:
    """Points per pixel (n, size²): a window of the orbit, turned by any angle, scaled to 60–95 % and placed inside."""
    points = min(_LARGEST_WINDOW, 32 * size)
    starts = (u[:, 0] * _ORBIT).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(attractors, points, axis=1)[categories, starts]
    scale = 0.6 + 0.35 * u[:, 2]
    turned = scale * np.exp(2j * math.pi * turn * u[:, 1])
    shift = (1 - scale) * (2 * u[:, 3] - 1) + 1j * (1 - scale) * (2 * u[:, 4] - 1) + (1 + 1j)
    windows *= turned.astype(np.complex64)[:, None]
    windows += shift.astype(np.complex64)[:, None]
    return _counts(_cells(windows, size / 2 * 0.9999, size), size)


_UNLIMITED = 1 << 40
_FIRST_INSTANCE: dict[Split, int] = {"train": 0, "heldout": 1 << 61, "test": 1 << 62}  # no split reaches the next one
_TEST_IMAGES = 8192
_VERSION = "fractals-v1"


class Fractals(Source):
    """Generated fractals with Zipf-distributed labels (see `isoflop.data.sources.fractals`)."""

    def __init__(
        self,
        *,
        split: Split,
        image_size: int,
        heldout: int,
        seed: int,
        channels: int = 1,
        classes: int = 1000,
        zipf: float = 1.5,
        turn: float = 1.0,
        zoom: float = 0.5,
        images: int | None = None,
    ) -> None:
        if not 8 <= image_size <= 256:
            raise DataError(f"fractals are drawn at 8 to 256 px, not {image_size}")
        if images is not None and not 1 <= images <= _UNLIMITED:
            raise DataError(f"fractals?images={images}: must be between 1 and 2^40")
        if not 0 <= turn <= 1:
            raise DataError(f"fractals?turn={turn:g}: the fraction of the full circle must be between 0 and 1")
        if not 0.1 <= zoom <= 0.95:
            raise DataError(f"fractals?zoom={zoom:g}: the smallest size must be between 0.1 and 0.95 of the picture")
        options = f"classes={classes}&zipf={zipf:g}&turn={turn:g}&zoom={zoom:g}" + (
            f"&images={images}" if images else ""
        )
        uri = f"fractals?{options}"
        super().__init__(
            uri,
            {"train": images or _UNLIMITED, "heldout": heldout, "test": _TEST_IMAGES}[split],
            image_size=image_size,
            fingerprint=f"{derive_key(_VERSION, uri, image_size, channels, seed):016x}",
            class_names=[f"fractal {c}" for c in range(classes)],
            channels=channels,
        )
        self.unique_images = images
        self._first = _FIRST_INSTANCE[split]
        self._seed = seed
        self._turn, self._zoom = turn, zoom
        self._shares = zipf_probabilities(classes, zipf)
        orbits(classes, seed)  # computed here, so that forked workers share it
        sample, _ = self._draw(np.arange(2048, dtype=np.int64))
        self.mean, self.std = mean_and_std(torch.from_numpy(sample))

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        pictures, categories = self._draw(indices + self._first)
        return torch.from_numpy(pictures), torch.from_numpy(categories)

    def _draw(self, instances: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return draw(
            instances,
            size=self.image_size,
            shares=self._shares,
            channels=self.channels,
            seed=self._seed,
            turn=self._turn,
            zoom=self._zoom,
        )
