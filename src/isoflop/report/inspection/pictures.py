"""Arrays as pictures: colour scales, mosaics with a margin, masked images beside their reconstructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isoflop.report.theme import RAMP

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
GREY = 127


def stretched(values: Array, low: float | None = None, high: float | None = None) -> Array:
    """`values` moved to 0 … 1, from `low` to `high` or from their least to their greatest; constant ones to 0."""
    low = float(np.nanmin(values)) if low is None else low
    high = float(np.nanmax(values)) if high is None else high
    if high <= low:
        return np.zeros_like(values)
    return np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0.0, 1.0)


def colored(values: Array) -> Pixels:
    """Values in 0 … 1 (…) on the report's scale, blue for low and yellow for high: (…, 3)."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP[::-1]], dtype=np.float64)
    place = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, place, stops[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def enlarged(pictures: Pixels, factor: int) -> Pixels:
    """Pictures (n, h, w, 3) with every pixel `factor` times as large."""
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def mosaic(pictures: Pixels, columns: int, margin: int = 2) -> Pixels:
    """Pictures (n, h, w, 3) in rows of `columns`, with white margins between: one picture (height, width, 3)."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + margin) + margin, columns * (w + margin) + margin, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (h + margin) + margin, (i % columns) * (w + margin) + margin
        sheet[top : top + h, left : left + w] = picture
    return sheet


def colour_images(images: Array) -> Pixels:
    """Images in 0 … 1 (n, h, w, channels) as (n, h, w, 3); of one channel in grey, of others the first three."""
    shown = images.repeat(3, axis=-1) if images.shape[-1] in (1, 2) else images
    return (255 * np.clip(shown[..., :3], 0, 1)).round().astype(np.uint8)


def save_png(path: Path, picture: Pixels) -> Path:
    """Write a picture (h, w, 3) and return its path."""
    Image.fromarray(picture).save(path, format="PNG")
    return path
