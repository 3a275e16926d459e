"""RandAugment (Cubuk et al., arXiv 1909.13719) in the variants of two libraries, which differ.

`rand-m9-mstd0.5-inc1` is timm's notation (DeiT, PoolFormer, MAE's fine-tuning): `m` the magnitude, `n` the operations
(2), `p` the probability of each (0.5), `mstd` the standard deviation of the magnitude (0), `mmax` its limit (10), and
`inc1` operations that all become stronger with it. `google-n2-m10` is TensorFlow's (big_vision, DeepMind's NFNets): `n`
operations of magnitude `m`, always applied, with Cutout. On both scales 10 is the maximum: a rotation by 30°.
Random numbers are arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from isoflop.errors import DataError

Pixels = NDArray[np.uint8]
MOST_OPERATIONS, DRAWS = 4, 5  # random numbers of an operation
SCALE = 10.0
MEAN_COLOUR = (124, 116, 104)  # what timm fills with: ImageNet's mean
GREY = 128  # what TensorFlow's fill with


@dataclass(frozen=True)
class Policy:
    """What is drawn from, and how."""

    library: str
    operations: int = 2
    magnitude: float = SCALE
    probability: float = 0.5
    deviation: float = 0.0
    largest: float = SCALE
    is_increasing: bool = False


@dataclass(frozen=True)
class Draw:
    """One operation to apply: its magnitude, its direction, two places in [0, 1), and timm's choice of bicubic."""

    name: str
    magnitude: float
    sign: float = 1.0
    place: tuple[float, float] = (0.0, 0.0)
    is_bicubic: bool = True


_PARTS = {
    "rand": {"m": "magnitude", "n": "operations", "p": "probability", "mstd": "deviation", "mmax": "largest",
             "inc": "is_increasing"},
    "google": {"m": "magnitude", "n": "operations"},
}  # fmt: skip


def parse_policy(text: str) -> Policy:
    """The policy that `text` names; DataError with what is wrong."""
    library, *parts = text.split("-")
    if library not in _PARTS:
        raise DataError(f"randaugment `{text}` must start with `rand-` (timm's) or `google-`")
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if not match or match[1] not in _PARTS[library]:
            known = ", ".join(_PARTS[library])
            raise DataError(f"randaugment `{text}`: `{part}` is not one of {known} followed by a number")
        values[_PARTS[library][match[1]]] = float(match[2])
    count = values.pop("operations", 2)
    increasing = values.pop("is_increasing", 0)
    policy = Policy(library, int(count), is_increasing=bool(increasing), **values)
    if count not in range(1, MOST_OPERATIONS + 1):
        raise DataError(f"randaugment `{text}`: there are 1 to {MOST_OPERATIONS} operations, not {count:g}")
    if policy.magnitude > 2 * SCALE or policy.probability > 1:
        raise DataError(f"randaugment `{text}`: a magnitude is at most {2 * SCALE:g}, a probability at most 1")
    return policy


def draw(policy: Policy, u: NDArray[np.float64], interpolation: str = "bicubic") -> list[Draw]:
    """The operations that the numbers `u` (operations · 5, in [0, 1)) choose; those that chance leaves out are not
    among them."""
    names = tuple(GOOGLE if policy.library == "google" else _TIMM_INCREASING if policy.is_increasing else _TIMM)
    found = []
    for row in u[: policy.operations * DRAWS].reshape(-1, DRAWS):
        which, chance, side, third, fourth = map(float, row)
        name, sign = names[int(which * len(names))], 1.0 if side < 0.5 else -1.0
        if policy.library == "google":
            found.append(Draw(name, policy.magnitude, sign, (third, fourth)))
        elif chance < policy.probability:
            spread = policy.deviation * NormalDist().inv_cdf(min(max(third, 1e-12), 1 - 1e-12))
            magnitude = min(max(policy.magnitude + spread, 0.0), policy.largest)
            is_bicubic = interpolation == "bicubic" or (interpolation == "random" and fourth < 0.5)
            found.append(Draw(name, magnitude, sign, is_bicubic=is_bicubic))
    return found


def rand_augment(image: Tensor, policy: Policy, u: NDArray[np.float64], interpolation: str = "bicubic") -> Tensor:
    """`image` uint8 (c, s, s) after the operations that `u` chooses; see `draw`."""
    chosen = draw(policy, u, interpolation)
    return apply(image, chosen, policy.library) if chosen else image


def apply(image: Tensor, chosen: list[Draw], library: str) -> Tensor:
    """`image` uint8 (c, s, s) after the operations `chosen`. Pictures of other than 1 or 3 channels: each by itself."""
    if image.shape[0] not in (1, 3):
        return torch.cat([apply(channel[None], chosen, library) for channel in image])
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    if library == "google":
        for one in chosen:
            pixels = GOOGLE[one.name](pixels, one)
    else:
        picture = Image.fromarray(pixels if image.shape[0] == 3 else pixels[:, :, 0])
        for one in chosen:
            picture = TIMM[one.name](picture, one)
        pixels = np.array(picture).reshape(pixels.shape)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


# timm's: Pillow's operations.


def _moved(picture: Image.Image, one: Draw, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample=_resampling(one), fillcolor=_fill(picture)
    )


def _resampling(one: Draw) -> Image.Resampling:
    return Image.Resampling.BICUBIC if one.is_bicubic else Image.Resampling.BILINEAR


def _fill(picture: Image.Image) -> tuple[int, int, int] | int:
    return MEAN_COLOUR if picture.mode == "RGB" else round(sum(MEAN_COLOUR) / 3)


def _share(one: Draw) -> float:
    return one.magnitude / SCALE


def _solarized_sum(picture: Image.Image, one: Draw) -> Image.Image:
    more = min(128, int(_share(one) * 110))
    table = [min(255, value + more) if value < 128 else value for value in range(256)]
    return picture.point(table * len(picture.getbands()))


def _posterized(picture: Image.Image, bits: int) -> Image.Image:
    mask = ~(0xFF >> bits) & 0xFF  # 0 bits are black, which newer versions of Pillow refuse to make
    return picture.point([value & mask for value in range(256)] * len(picture.getbands()))


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance], *, up: bool) -> TimmOperation:
    """Away from 1 in either direction, or from 0.1 to 1.9 along the scale."""
    if up:
        return lambda picture, one: kind(picture).enhance(max(0.1, 1.0 + one.sign * _share(one) * 0.9))
    return lambda picture, one: kind(picture).enhance(_share(one) * 1.8 + 0.1)


TimmOperation = Callable[[Image.Image, Draw], Image.Image]
_EVERYWHERE: dict[str, TimmOperation] = {
    "AutoContrast": lambda picture, one: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, one: ImageOps.equalize(picture),
    "Invert": lambda picture, one: ImageOps.invert(picture),
    "Rotate": lambda picture, one: picture.rotate(
        one.sign * _share(one) * 30, resample=_resampling(one), fillcolor=_fill(picture)
    ),
    "SolarizeAdd": _solarized_sum,
    "ShearX": lambda picture, one: _moved(picture, one, 1, one.sign * _share(one) * 0.3, 0, 0, 1, 0),
    "ShearY": lambda picture, one: _moved(picture, one, 1, 0, 0, one.sign * _share(one) * 0.3, 1, 0),
    "TranslateXRel": lambda picture, one: _moved(
        picture, one, 1, 0, one.sign * _share(one) * 0.45 * picture.size[0], 0, 1, 0
    ),
    "TranslateYRel": lambda picture, one: _moved(
        picture, one, 1, 0, 0, 0, 1, one.sign * _share(one) * 0.45 * picture.size[1]
    ),
}
_ENHANCE = {"Color": ImageEnhance.Color, "Contrast": ImageEnhance.Contrast, "Brightness": ImageEnhance.Brightness,
            "Sharpness": ImageEnhance.Sharpness}  # fmt: skip
_TIMM: dict[str, TimmOperation] = {
    **_EVERYWHERE,
    "Posterize": lambda picture, one: _posterized(picture, int(_share(one) * 4)),
    "Solarize": lambda picture, one: ImageOps.solarize(picture, min(256, int(_share(one) * 256))),
    **{name: _enhanced(kind, up=False) for name, kind in _ENHANCE.items()},
}
_TIMM_INCREASING: dict[str, TimmOperation] = {
    **_EVERYWHERE,
    "PosterizeIncreasing": lambda picture, one: _posterized(picture, 4 - int(_share(one) * 4)),
    "SolarizeIncreasing": lambda picture, one: ImageOps.solarize(picture, 256 - min(256, int(_share(one) * 256))),
    **{f"{name}Increasing": _enhanced(kind, up=True) for name, kind in _ENHANCE.items()},
}
TIMM = {**_TIMM, **_TIMM_INCREASING}


# TensorFlow's (big_vision, pp/archive/autoaugment.py; deepmind-research, nfnets/autoaugment.py): arrays (s, s, c).


def _nearest(pixels: Pixels, a: float, b: float, c: float, d: float, e: float, f: float) -> Pixels:
    """Pixel (x, y) from the nearest to (a·x + b·y + c, d·x + e·y + f); grey from beyond the border."""
    height, width, _ = pixels.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    found = (a * x + b * y + c, d * x + e * y + f)
    column, row = (np.trunc(part + np.copysign(np.float32(0.5), part)).astype(np.int64) for part in found)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    moved = pixels[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside[:, :, None], moved, np.uint8(GREY))


def _rotated(pixels: Pixels, one: Draw) -> Pixels:
    height, width, _ = pixels.shape
    angle = np.deg2rad(one.sign * _share(one) * 30)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    left = (width - 1 - (cos * (width - 1) - sin * (height - 1))) / 2
    top = (height - 1 - (sin * (width - 1) + cos * (height - 1))) / 2
    return _nearest(pixels, cos, -sin, left, sin, cos, top)


def _blend(plain: NDArray[np.uint8], pixels: Pixels, one: Draw) -> Pixels:
    """From `plain` (0) over `pixels` (1) and beyond, by 0.1 to 1.9 along the scale; cut off, not rounded."""
    factor = np.float32(_share(one) * 1.8 + 0.1)
    start = plain.astype(np.float32)
    return (start + factor * (pixels.astype(np.float32) - start)).clip(0, 255).astype(np.uint8)


def _grey(pixels: Pixels) -> Pixels:
    if pixels.shape[2] == 1:
        return pixels
    weights = np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)
    grey = (pixels.astype(np.float32) / np.float32(255)) @ weights
    return (grey * np.float32(255.5)).astype(np.uint8)[:, :, None].repeat(3, axis=2)


def _constant(pixels: Pixels) -> Pixels:
    """What contrast fades to: the pixels of the picture over 256, and not their mean, in the authors' code."""
    return np.full_like(pixels, min(255, pixels.shape[0] * pixels.shape[1] // 256))


def _smooth(pixels: Pixels) -> Pixels:
    """Means of 3x3 pixels, the middle one five times; the border as it is."""
    wide = pixels.astype(np.float32)
    height, width, _ = pixels.shape
    if min(height, width) < 3:
        return pixels
    inner = 4 * wide[1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            inner = inner + wide[row : row + height - 2, column : column + width - 2]
    smooth = pixels.copy()
    smooth[1:-1, 1:-1] = (inner / np.float32(13)).clip(0, 255).astype(np.uint8)
    return smooth


def _stretched(pixels: Pixels) -> Pixels:
    low, high = (part.astype(np.float32) for part in (pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))))
    scale = np.float32(255) / np.maximum(high - low, np.float32(1))
    stretched = (pixels.astype(np.float32) * scale - low * scale).clip(0, 255).astype(np.uint8)
    return np.where(high > low, stretched, pixels)


def _posterized_array(pixels: Pixels, one: Draw) -> Pixels:
    shift = np.uint8(min(7, max(0, 8 - int(_share(one) * 4))))
    return (pixels >> shift) << shift


def _solarized_array(pixels: Pixels, one: Draw) -> Pixels:
    # The threshold is an 8-bit number there, and begins anew at 256: magnitude 10 inverts everything.
    return np.where(pixels < int(_share(one) * 256) % 256, pixels, 255 - pixels)


def _added_array(pixels: Pixels, one: Draw) -> Pixels:
    more = (pixels.astype(np.int64) + int(_share(one) * 110)).clip(0, 255).astype(np.uint8)
    return np.where(pixels < 128, more, pixels)


def _cut_out(pixels: Pixels, one: Draw) -> Pixels:
    height, width, _ = pixels.shape
    reach = int(_share(one) * 40)
    row, column = (int(place * side) for place, side in zip(one.place, (height, width), strict=True))
    cut = pixels.copy()
    cut[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = GREY
    return cut


GOOGLE: dict[str, Callable[[Pixels, Draw], Pixels]] = {
    "AutoContrast": lambda pixels, one: _stretched(pixels),
    "Equalize": lambda pixels, one: np.array(
        ImageOps.equalize(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
    ).reshape(pixels.shape),
    "Invert": lambda pixels, one: 255 - pixels,
    "Rotate": _rotated,
    "Posterize": _posterized_array,
    "Solarize": _solarized_array,
    "Color": lambda pixels, one: _blend(_grey(pixels), pixels, one),
    "Contrast": lambda pixels, one: _blend(_constant(pixels), pixels, one),
    "Brightness": lambda pixels, one: _blend(np.zeros_like(pixels), pixels, one),
    "Sharpness": lambda pixels, one: _blend(_smooth(pixels), pixels, one),
    "ShearX": lambda pixels, one: _nearest(pixels, 1, one.sign * _share(one) * 0.3, 0, 0, 1, 0),
    "ShearY": lambda pixels, one: _nearest(pixels, 1, 0, 0, one.sign * _share(one) * 0.3, 1, 0),
    "TranslateX": lambda pixels, one: _nearest(pixels, 1, 0, one.sign * _share(one) * 100, 0, 1, 0),
    "TranslateY": lambda pixels, one: _nearest(pixels, 1, 0, 0, 0, 1, one.sign * _share(one) * 100),
    "Cutout": _cut_out,
    "SolarizeAdd": _added_array,
}
