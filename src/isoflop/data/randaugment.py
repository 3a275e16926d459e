"""RandAugment (Cubuk et al., arXiv 1909.13719): N operations drawn from fourteen, all at one magnitude.

The operations and their ranges are torchvision's; what is random there is passed in here.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

_LARGEST_MAGNITUDE = 30.0

Operation = Callable[[Tensor, float, float], Tensor]
"""(image uint8 (c, s, s), strength in 0 … 1, sign ±1) to the same shape"""


def _affine(image: Tensor, *, shear: tuple[float, float] = (0, 0), shift: tuple[float, float] = (0, 0)) -> Tensor:
    """A shear by tangents, or a shift in pixels; torchvision's shears start at the upper left corner."""
    degrees = [float(np.degrees(np.arctan(s))) for s in shear]
    centre = [0.0, 0.0] if any(shear) else None
    pixels = [int(s) for s in shift]
    moved: Tensor = TF.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=degrees, center=centre)
    return moved


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "shear_x": lambda image, strength, sign: _affine(image, shear=(sign * strength * 0.3, 0)),
    "shear_y": lambda image, strength, sign: _affine(image, shear=(0, sign * strength * 0.3)),
    "translate_x": lambda image, strength, sign: _affine(
        image, shift=(sign * strength * image.shape[2] * 150 / 331, 0)
    ),
    "translate_y": lambda image, strength, sign: _affine(
        image, shift=(0, sign * strength * image.shape[1] * 150 / 331)
    ),
    "rotate": lambda image, strength, sign: TF.rotate(image, angle=sign * strength * 30),
    "brightness": lambda image, strength, sign: TF.adjust_brightness(image, 1 + sign * strength * 0.9),
    "saturation": lambda image, strength, sign: TF.adjust_saturation(image, 1 + sign * strength * 0.9),
    "contrast": lambda image, strength, sign: TF.adjust_contrast(image, 1 + sign * strength * 0.9),
    "sharpness": lambda image, strength, sign: TF.adjust_sharpness(image, 1 + sign * strength * 0.9),
    "posterize": lambda image, strength, sign: TF.posterize(image, 8 - round(strength * 4)),
    "solarize": lambda image, strength, sign: TF.solarize(image, 255 * (1 - strength)),
    "autocontrast": lambda image, strength, sign: TF.autocontrast(image),
    "equalize": lambda image, strength, sign: TF.equalize(image),
}
_NAMES = tuple(OPERATIONS)


def rand_augment(image: Tensor, operations: int, magnitude: float, u: NDArray[np.float64]) -> Tensor:
    """`image` uint8 (c, s, s) after `operations` draws; `magnitude` is of 30, `u` holds two numbers per operation."""
    strength = magnitude / _LARGEST_MAGNITUDE
    for k in range(operations):
        operation = OPERATIONS[_NAMES[int(float(u[2 * k]) * len(_NAMES))]]
        image = operation(image, strength, 1.0 if u[2 * k + 1] < 0.5 else -1.0)
    return image
