"""Augmentations of small images, for a whole batch at once; each image's draw depends on (seed, epoch, index) alone."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.keyed import derive_key, uniforms


def crop_flip(images: Tensor, *, seed: int, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> Tensor:
    """`images` uint8 (n, c, s, s), each shifted by up to s/8 pixels with its border mirrored, and flipped half of the
    time.

    The usual augmentation of CIFAR (4 pixels of padding at 32 px; He et al., arXiv 1512.03385, section 4.2), with
    mirrored instead of black borders.
    """
    n, channels, size, _ = images.shape
    u = uniforms(derive_key("crop_flip", seed), epochs, indices, 3)
    reach = size // 8
    shifts = (u[:, :2] * (2 * reach + 1)).astype(np.int64) - reach
    rows = _mirrored(np.arange(size) + shifts[:, :1], size)
    columns = _mirrored(np.arange(size) + shifts[:, 1:], size)
    columns = np.where(u[:, 2:] < 0.5, columns[:, ::-1], columns)
    pixels = torch.from_numpy(rows[:, :, None] * size + columns[:, None, :]).view(n, 1, size * size)
    return images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


def _mirrored(coordinates: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Coordinates outside 0 … size-1 reflected at the border pixel."""
    inside = np.abs(coordinates)
    return np.asarray(np.minimum(inside, 2 * (size - 1) - inside))
