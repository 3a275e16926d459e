"""Augmentation, evaluation crop, Mixup and CutMix. Random numbers are arguments.

The numbers `u` of a sample (64 of them, in [0, 1)) depend only on (seed, epoch, index), so the result is the same in
any process. Each step of an augmentation uses a fixed part of `u`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from isoflop.config.run import EARLIER, RANDAUGMENT
from isoflop.data.decode import Box, decode_crop, read_header, resize
from isoflop.data.order import derive_key, hashed, uniforms
from isoflop.data.randaugment import Policy, parse_policy, rand_augment
from isoflop.errors import DataError

Uniforms = NDArray[np.float64]

_DRAWS = 64
_CROP, _FLIP, _INTERPOLATION = slice(0, 22), 22, 23
_OPERATIONS, _ERASE, _JITTER = slice(24, 44), slice(44, 52), slice(52, 60)
_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """A row of the table of augmentations: what is done to a training picture, with the numbers of its paper."""

    crop: str = "centre"
    """"centre", "shift" (reflect-pad and shift by up to 1/8), "stretch" (the middle 7/8 of each side), or a part of the
    area from `smallest` on, sides 3:4 to 4:3 (Szegedy et al., arXiv 1409.4842), as torchvision draws it ("inception")
    or TensorFlow ("tensorflow")"""
    smallest: float = 0.08
    least_covered: float = 0.0
    """of TensorFlow's: crops that cover less of the area are drawn again"""
    flip: bool = False
    policy: Policy | None = None
    """of RandAugment"""
    scales: tuple[float, float] = (1.0, 1.0)
    """of pictures with boxes or maps (`dense/canvas.py`): multiples of the one at which the picture fits"""
    interpolation: str = "bilinear"
    """"bilinear", "bicubic", or "random": either, for each picture"""
    jitter: float = 0.0
    """brightness, contrast and saturation change by up to this share"""
    erasing: float = 0.0
    """the probability of random erasing (Zhong et al., arXiv 1708.04896)"""


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "crop_flip": Augmentation(crop="shift", flip=True),
    "crop_flip_erase": Augmentation(crop="shift", flip=True, erasing=0.5),
    "inception": Augmentation(crop="inception", flip=True),
    "mae": Augmentation(crop="inception", flip=True, smallest=0.2),
    "jitter": Augmentation(crop="inception", flip=True, jitter=0.4),
    "randaugment": Augmentation(crop="inception", flip=True, policy=parse_policy(RANDAUGMENT)),
    "deit": Augmentation(crop="inception", flip=True, erasing=0.25, policy=parse_policy(RANDAUGMENT)),
    "big_vision": Augmentation(crop="tensorflow", flip=True, smallest=0.05),
    "nfnet": Augmentation(crop="tensorflow", flip=True, smallest=0.08, least_covered=0.1),
}


def find_augmentation(name: str, randaugment: str | None = None, interpolation: str = "bilinear") -> Augmentation:
    """The augmentation called `name`, with that policy of RandAugment if given; DataError with the names there are."""
    if name not in AUGMENTATIONS:
        raise DataError(f"unknown augmentation `{name}`; there is {', '.join(AUGMENTATIONS)}")
    if randaugment == EARLIER:
        raise DataError(
            "this run was started with a RandAugment of a third of the strength, which this version does not have: "
            "train it again, with `data.randaugment`"
        )
    found = AUGMENTATIONS[name]
    policy = parse_policy(randaugment) if randaugment else found.policy
    return replace(found, policy=policy, interpolation=interpolation)


def draw_uniforms(seed: int, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> Uniforms:
    """The random numbers of a batch of samples, shape (n, 64)."""
    return uniforms(derive_key("augmentation", seed), epochs, indices, _DRAWS)


def crop_share(size: int) -> float:
    """The share of the shorter side that evaluation at `size` pixels shows: 7/8 from 128 px on, else all of it.

    With 224 px this is the "resize the shorter side to 256, cut out the centre" of the papers; 32 and 64 px are shown
    whole, as CIFAR's and downsampled ImageNet's images are.
    """
    return 7 / 8 if size >= 128 else 1.0


def centre_box(height: int, width: int, size: int) -> Box:
    """The evaluation crop: the centred square of a picture that becomes size × size, in one step.

    Evaluation, features, predictions, the cache of decoded images and the descriptions of exports all follow it.
    """
    side = max(1, round(min(height, width) * crop_share(size)))
    return Box((height - side) // 2, (width - side) // 2, side, side)


def evaluation_view(encoded: bytes, size: int, channels: int, interpolation: str = "bilinear") -> Tensor:
    """The evaluation crop of an encoded picture, uint8 (channels, size, size). Raises DamagedImage."""
    header = read_header(encoded)
    box = centre_box(header.height, header.width, size)
    return decode_crop(encoded, header, box, size=size, channels=channels, interpolation=interpolation)


def inception_box(height: int, width: int, u: Uniforms, smallest: float = 0.08) -> Box:
    """A random part of the area, from the share `smallest` to all, of an aspect ratio of 3:4 to 4:3; `u` are 22 numbers
    in [0, 1).

    After ten proposals that do not fit, the largest centred part with an allowed aspect ratio (as torchvision does).
    """
    for attempt in range(_CROP_ATTEMPTS):
        area = height * width * (smallest + (1 - smallest) * float(u[2 + 2 * attempt]))
        root = math.sqrt(math.exp(math.log(3 / 4) + 2 * math.log(4 / 3) * float(u[3 + 2 * attempt])))
        h, w = round(math.sqrt(area) / root), round(math.sqrt(area) * root)
        if 0 < h <= height and 0 < w <= width:
            return Box(int(float(u[0]) * (height - h + 1)), int(float(u[1]) * (width - w + 1)), h, w)
    h, w = min(height, max(1, round(width * 4 / 3))), min(width, max(1, round(height * 4 / 3)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def tensorflow_box(height: int, width: int, u: Uniforms, smallest: float, least_covered: float = 0.0) -> Box:
    """A random part of the area as TensorFlow's `sample_distorted_bounding_box` draws it; `u` are 22 numbers in [0, 1).

    The aspect ratio is uniform in 3:4 to 4:3; then the height is uniform between that of the smallest area and the
    largest that fits, so that crops are smaller than torchvision's: 34 % of the area in the mean, not 43 %, from 5 %
    on. The whole picture after ten proposals that do not fit.
    """
    least, most = np.float32(smallest * height * width), np.float32(height * width)
    for attempt in range(_CROP_ATTEMPTS):
        ratio = float(u[2 + 2 * attempt]) * (4 / 3 - 3 / 4) + 3 / 4
        tallest = round(math.sqrt(most / ratio))
        if round(tallest * ratio) > width:
            tallest = int((width + 0.5 - 1e-7) / ratio)
            tallest -= round(tallest * ratio) > width
        tallest = min(tallest, height)
        h = min(round(math.sqrt(least / ratio)), tallest)
        h += int(float(u[3 + 2 * attempt]) * (tallest - h + 1))
        w = round(h * ratio)
        if h * w < least:
            h, w = h + 1, round((h + 1) * ratio)
        if h * w > most:
            h, w = h - 1, round((h - 1) * ratio)
        is_inside = least <= h * w <= most and 0 < w <= width and 0 < h <= height
        if is_inside and h * w >= least_covered * height * width:
            return Box(int(float(u[0]) * max(1, height - h)), int(float(u[1]) * max(1, width - w)), h, w)
    return Box(0, 0, height, width)


def stretched_box(height: int, width: int, size: int) -> Box:
    """The middle 7/8 of each side from `size` = 128 px on, else all of it: what is left when a picture is resized to
    256 × 256, whatever its aspect ratio, and 224 × 224 of it are cut out (few-shot evaluation of arXiv 2106.04560,
    authors' code)."""
    share = 7 / 8 if size >= 128 else 1.0
    h, w = max(1, round(height * share)), max(1, round(width * share))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def interpolation_of(augmentation: Augmentation, u: Uniforms) -> str:
    """How one picture, of the numbers `u`, is resized."""
    if augmentation.interpolation != "random":
        return augmentation.interpolation
    return "bilinear" if u[_INTERPOLATION] < 0.5 else "bicubic"


def crop_box(augmentation: Augmentation, height: int, width: int, size: int, u: Uniforms) -> Box:
    """The part of a picture that this augmentation shows."""
    if augmentation.crop == "inception":
        return inception_box(height, width, u[_CROP], augmentation.smallest)
    if augmentation.crop == "tensorflow":
        return tensorflow_box(height, width, u[_CROP], augmentation.smallest, augmentation.least_covered)
    if augmentation.crop == "stretch":
        return stretched_box(height, width, size)
    return centre_box(height, width, size)


def after_crop(augmentation: Augmentation, image: Tensor, u: Uniforms) -> Tensor:
    """Flip, jitter and RandAugment of one image, uint8 (c, s, s), cropped already."""
    if augmentation.flip and augmentation.crop != "shift" and u[_FLIP] < 0.5:
        image = image.flip(2)
    if augmentation.jitter:
        image = _jitter(image, augmentation.jitter, u[_JITTER])
    if augmentation.policy:
        image = rand_augment(image, augmentation.policy, u[_OPERATIONS], augmentation.interpolation)
    return image


def finish_batch(augmentation: Augmentation, images: Tensor, u: Uniforms) -> Tensor:
    """What is done to all images of a batch at once, uint8 (n, c, s, s): shifts, with flips, and erasing."""
    if augmentation.crop == "shift":
        images = shift_flip(images, u[:, 0:3])
    return erase(images, u[:, _ERASE], augmentation.erasing) if augmentation.erasing else images


def augment_batch(augmentation: Augmentation, images: Tensor, u: Uniforms) -> Tensor:
    """Images uint8 (n, c, s, s) that are decoded already, augmented by their numbers `u` (n, 64)."""
    is_cropped = augmentation.crop not in ("centre", "shift")
    size = images.shape[2]
    if is_cropped or augmentation.jitter or augmentation.policy:
        augmented = torch.empty_like(images)
        for k, image in enumerate(images):
            if is_cropped:
                top, left, height, width = crop_box(augmentation, size, size, size, u[k])
                image = resize(
                    image[:, top : top + height, left : left + width], size, interpolation_of(augmentation, u[k])
                )
            augmented[k] = after_crop(augmentation, image, u[k])
        images = augmented
    return finish_batch(augmentation, images, u)


def shift_flip(images: Tensor, u: Uniforms) -> Tensor:
    """Images uint8 (n, c, s, s), each shifted by up to s/8 with its border mirrored, and half of them flipped.

    The usual augmentation of CIFAR (4 pixels of padding at 32 px; He et al., arXiv 1512.03385, section 4.2), with
    mirrored instead of black borders. `u` is (n, 3).
    """
    n, channels, size, _ = images.shape
    reach = size // 8
    shifts = (u[:, :2] * (2 * reach + 1)).astype(np.int64) - reach
    rows = _mirrored(np.arange(size) + shifts[:, :1], size)
    columns = _mirrored(np.arange(size) + shifts[:, 1:], size)
    columns = np.where(u[:, 2:3] < 0.5, columns[:, ::-1], columns)
    pixels = torch.from_numpy(rows[:, :, None] * size + columns[:, None, :]).view(n, 1, size * size)
    return images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


def _mirrored(coordinates: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Coordinates outside 0 … size-1 reflected at the border pixel."""
    inside = np.abs(coordinates)
    return np.asarray(np.minimum(inside, 2 * (size - 1) - inside))


def _jitter(image: Tensor, strength: float, u: Uniforms) -> Tensor:
    """Brightness, contrast and saturation, in an order drawn at random, each times 1 ± strength."""
    from torchvision.transforms.v2 import functional as TF

    changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for which in np.argsort(u[3:6]):
        image = changes[which](image, 1 + strength * (2 * float(u[which]) - 1))
    return image


def erase(images: Tensor, u: Uniforms, probability: float) -> Tensor:
    """Images uint8 (n, c, s, s), each with this probability without a rectangle of 2–33 % of the area, sides 0.3 to
    3.3, in the place of which are random pixels; `u` is (n, 6)."""
    chosen = np.flatnonzero(u[:, 0] < probability)
    if not len(chosen):
        return images
    u = u[chosen]
    channels, size = images.shape[1:3]
    area = size * size * (0.02 + 0.31 * u[:, 1])
    root = np.sqrt(np.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * u[:, 2]))
    height, width = (
        np.clip(np.rint(side), 1, size).astype(np.int64) for side in (np.sqrt(area) / root, np.sqrt(area) * root)
    )
    top, left = ((u[:, k] * (size - side + 1)).astype(np.int64) for k, side in ((3, height), (4, width)))
    counts = channels * height * width
    ends = np.cumsum(-(-counts // 8))  # of what each rectangle takes of the noise, in words of eight pixels
    starts = np.concatenate([[0], ends[:-1]])
    seeds, words_of = u[:, 5] * 2.0**53, ends - starts
    noise = hashed(np.repeat(seeds.astype(np.uint64), words_of), np.arange(ends[-1]) - np.repeat(starts, words_of))
    pixels, erased = noise.astype("<u8", copy=False).view(np.uint8), images.numpy().copy()
    for row, first, count, y, x, h, w in np.stack([chosen, 8 * starts, counts, top, left, height, width], 1).tolist():
        erased[row, :, y : y + h, x : x + w] = pixels[first : first + count].reshape(channels, h, w)
    return torch.from_numpy(erased)


# Mixup and CutMix, on the device, the same for any number of ranks.
#
# The images at places 2i and 2i+1 of the global batch are mixed with each other. How, depends on (seed, step, i) alone;
# `loader.rank_part` never puts the two on different ranks.


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as float32 (n, num_classes): of int64 (n,) a one at the class; what has that shape already stays so."""
    if labels.ndim == 2:
        return labels
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.float32)


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    seed: int,
    step: int,
    first: int,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch: float = 0.5,
    probability: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) and targets float (n, classes), each pair mixed; on the device of `images`.

    With `probability` a pair is mixed, and then with probability `switch` by CutMix (arXiv 1905.04899: a rectangle of
    the partner, of the area 1-λ), else by Mixup (arXiv 1710.09412: λ·image + (1-λ)·partner); λ ~ Beta(α, α). An α of
    0 turns one of the two off. The defaults are DeiT's (arXiv 2012.12877). An image without a partner stays as it is.

    `first` is `Batch.first`. Raises DataError for an image alone, or if `first` is odd: its partner may be on another
    rank.
    """
    if first % 2 or len(images) < 2:
        raise DataError("Mixup and CutMix need a batch of at least two images per rank")
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    n, _, height, width = images.shape
    pairs = (first + np.arange(n, dtype=np.int64)) // 2
    u = uniforms(derive_key("mixing", seed), step, pairs, 5)
    is_cut = (u[:, 1] < switch) if mixup_alpha > 0 and cutmix_alpha > 0 else np.full(n, cutmix_alpha > 0)
    alpha = np.where(is_cut, max(cutmix_alpha, 1e-6), max(mixup_alpha, 1e-6))
    share = betaincinv(alpha, alpha, u[:, 2])
    share[u[:, 0] >= probability] = 1.0
    if n % 2:
        share[-1] = 1.0
    # The rectangle of CutMix, clipped at the border; λ follows the area that is left.
    half = np.sqrt(1 - share) / 2
    top, bottom = (np.clip(np.rint(height * (u[:, 3] + s * half)), 0, height) for s in (-1, 1))
    left, right = (np.clip(np.rint(width * (u[:, 4] + s * half)), 0, width) for s in (-1, 1))
    share = np.where(is_cut, 1 - (bottom - top) * (right - left) / (height * width), share)

    def column(values: np.ndarray) -> Tensor:
        sent = torch.from_numpy(np.asarray(values, dtype=np.float32)).to(images.device, non_blocking=True)
        return sent.view(n, 1, 1, 1)

    partner = torch.arange(n, device=images.device) ^ 1
    partner.clamp_(max=n - 1)
    rows = torch.arange(height, device=images.device).view(1, 1, height, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, width)
    inside = (rows >= column(top)) & (rows < column(bottom)) & (columns >= column(left)) & (columns < column(right))
    weight = torch.where(column(is_cut) > 0, (~inside).to(torch.float32), column(share)).to(images.dtype)
    mixed = images * weight + images[partner] * (1 - weight)
    own = column(share).view(n, 1).to(targets.dtype)
    return mixed, targets * own + targets[partner] * (1 - own)
