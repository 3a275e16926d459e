"""Placement of a picture and its annotations on a square canvas: scale, crop or pad, flip.

Random numbers are arguments, as in `transforms.py`. Three are used: scale, place, flip.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from isoflop.data.decode import DamagedImage, decode_numbers, decode_whole, read_header
from isoflop.data.dense.objects import IGNORED, Objects
from isoflop.data.records import Encoded, read_image_file, read_surely, why
from isoflop.data.source import Task
from isoflop.data.transforms import Augmentation
from isoflop.errors import DataError

_SMALLEST_SHARE = 1e-3  # of an object's box that must stay on the canvas for it to count


JITTERS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "flip": Augmentation(flip=True),
    # shorter sides of 480 … 800 px, as in the multi-scale schedules of COCO
    "multi_scale": Augmentation(scales=(0.6, 1.0), flip=True),
    "scale_crop": Augmentation(scales=(0.5, 2.0), flip=True),  # of ADE20K's recipes
    "large_scale_jitter": Augmentation(scales=(0.1, 2.0), flip=True),  # Ghiasi et al., arXiv 2012.07177
}


def find_jitter(name: str) -> Augmentation:
    """The row of `JITTERS` called `name`; DataError with the names there are."""
    if name not in JITTERS:
        raise DataError(
            f"`data.augment` = {name} is for whole pictures of one class; boxes and masks go with {', '.join(JITTERS)}"
        )
    return JITTERS[name]


@dataclass(frozen=True)
class Placement:
    """Where a picture of (height, width) lies on a canvas: scaled to (rows, columns), its corner at (top, left)."""

    height: int
    width: int
    rows: int
    columns: int
    top: int = 0
    left: int = 0
    flipped: bool = False

    @property
    def scales(self) -> tuple[float, float]:
        """Canvas pixels per pixel of the picture, across and down."""
        return self.columns / self.width, self.rows / self.height


def place(
    height: int, width: int, size: int, task: Task, jitter: Augmentation, u: NDArray[np.float64] | None
) -> Placement:
    """Where a picture goes. Objects are shown whole: at scale 1 the longer side fits. Maps fill: the shorter one does.

    What is too large is cut at a random place by `u` (4,), or without one in the middle; what is too small is padded on
    the right and below.
    """
    fit = size / (max if task == "detect" else min)(height, width)
    low, high = jitter.scales
    scale = fit if u is None else fit * (low + (high - low) * u[0])
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    down, across = (u[1], u[2]) if u is not None else (0.5, 0.5)
    top, left = -int(max(0, rows - size) * down), -int(max(0, columns - size) * across)
    return Placement(height, width, rows, columns, top, left, bool(jitter.flip and u is not None and u[3] < 0.5))


def put_pixels(pixels: NDArray[np.uint8], at: Placement, size: int, fill: tuple[int, ...]) -> torch.Tensor:
    """The canvas uint8 (channels, size, size) with the picture (height, width, channels) on it."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if (at.rows, at.columns) != (at.height, at.width):
        image = F.interpolate(image, (at.rows, at.columns), mode="bilinear", antialias=True, align_corners=False)
    canvas = torch.tensor(fill, dtype=torch.uint8)[:, None, None].expand(-1, size, size).contiguous()
    part = image[0, :, -at.top : size - at.top, -at.left : size - at.left]
    canvas[:, : part.shape[1], : part.shape[2]] = part
    return canvas.flip(2) if at.flipped else canvas


def put_map(classes: NDArray[np.uint8], at: Placement, size: int) -> NDArray[np.uint8]:
    """The canvas (size, size) of classes; 255 where there is no picture. Nearest neighbours: no class is invented."""
    down = np.minimum(((np.arange(at.rows) + 0.5) * at.height / at.rows).astype(np.int64), at.height - 1)
    across = np.minimum(((np.arange(at.columns) + 0.5) * at.width / at.columns).astype(np.int64), at.width - 1)
    part = classes[down[-at.top : size - at.top]][:, across[-at.left : size - at.left]]
    canvas = np.full((size, size), IGNORED, dtype=np.uint8)
    canvas[: part.shape[0], : part.shape[1]] = part
    return canvas[:, ::-1].copy() if at.flipped else canvas


def put_objects(objects: Objects, at: Placement, size: int) -> Objects:
    """The objects as they lie on the canvas; those of which nothing is left there are left out."""
    x, y = at.scales
    moved = objects.boxes * np.array([x, y, x, y], np.float32) + np.array([at.left, at.top] * 2, np.float32)
    boxes = moved.clip(0, size)
    if at.flipped:
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], axis=1)
    sides, whole = boxes[:, 2:] - boxes[:, :2], moved[:, 2:] - moved[:, :2]
    seen = (sides > 0.5).all(axis=1) & (sides.prod(axis=1) > _SMALLEST_SHARE * whole.prod(axis=1))
    is_cut = (sides < whole).any(axis=1)[seen]
    boxes = boxes[seen].astype(np.float32)
    masks = objects.masks
    if masks is not None:
        kept = [put_map(mask.view(np.uint8), at, size) == 1 for mask in masks[seen]]
        masks = np.stack(kept) if kept else np.zeros((0, size, size), bool)
        for k in np.flatnonzero(is_cut & masks.any(axis=(1, 2))):  # what is left of it may be smaller than of its box
            boxes[k] = box_of(masks[k])
    placed = Objects(boxes, objects.classes[seen], objects.crowds[seen], sides[seen].prod(axis=1), masks)
    return placed if masks is None else placed.where(np.asarray(masks.any(axis=(1, 2))))


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box around a mask (height, width) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# Whole pictures from files, of any size.


def read_picture(records: Encoded, index: int) -> NDArray[np.uint8]:
    """Pixels uint8 (height, width, 3). Raises DamagedImage with the name, DataError where the storage fails."""
    try:
        encoded = read_surely(records, index)
        return decode_whole(encoded, read_header(encoded))
    except DamagedImage as error:
        raise DamagedImage(f"{records.name(index)}: {error}") from error


def read_map(path: Path) -> NDArray[np.uint8]:
    """The numbers (height, width) in a PNG of one channel or with a palette.

    Raises DamagedImage with the path, DataError where the storage fails.
    """
    try:
        numbers = decode_numbers(read_image_file(path))
    except (DamagedImage, OSError) as error:
        kind = DataError if getattr(error, "errno", None) not in (None, errno.ENOENT) else DamagedImage
        raise kind(f"{path}: {why(error)}") from error
    if numbers.max(initial=0) > 255:
        raise DamagedImage(f"{path}: class {numbers.max()}, but maps of classes have at most 256")
    return numbers.astype(np.uint8)


def file_fingerprint(path: Path, *more: str) -> str:
    """A hash of a file's content and of `more`."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8)
    digest.update(repr(more).encode())
    return digest.hexdigest()
