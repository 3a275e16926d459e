"""Predicted boxes, masks and maps drawn next to the ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from isoflop.data.dense import DenseSource, Objects
from isoflop.data.dense.objects import IGNORED
from isoflop.errors import CheckpointError
from isoflop.objectives import Objective
from isoflop.objectives.dense.detector import Detector
from isoflop.objectives.dense.segmenter import Segmenter
from isoflop.train.device import normalize
from isoflop.transfer.dense.average_precision import detect

# Maps of classes of whole pictures, and how well they agree with the truth.


Counts = NDArray[np.int64]
_STRIDE = 2 / 3  # of a window's side: how far the next one begins (512 and 341 px in ADE20K's recipes)


@torch.no_grad()
def class_maps(segmenter: Segmenter, source: DenseSource, *, device: torch.device) -> Iterator[NDArray[np.uint8]]:
    """The class of each pixel (height, width) of each image of `source`, in order and of its own size.

    The shorter side is scaled to the size that the segmenter was trained for, and windows slide over the longer one.
    """
    segmenter.eval()
    size = source.image_size
    for index in range(len(source)):
        pixels = torch.from_numpy(source.records.pixels(source.record(index))).permute(2, 0, 1)[None]
        height, width = pixels.shape[-2:]
        scale = size / min(height, width)
        sides = (max(size, round(height * scale)), max(size, round(width * scale)))
        scaled = F.interpolate(pixels, sides, mode="bilinear", antialias=True, align_corners=False)
        logits = slide(segmenter, normalize(scaled, source, device), size)
        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        yield logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def slide(segmenter: Segmenter, image: Tensor, size: int) -> Tensor:
    """Logits (1, classes, H, W) of a normalised image (1, C, H, W), averaged over all windows that see a pixel."""
    height, width = image.shape[-2:]
    total: Tensor | None = None
    seen = image.new_zeros(1, 1, height, width)
    for top in _starts(height, size):
        for left in _starts(width, size):
            part = (..., slice(top, top + size), slice(left, left + size))
            logits = segmenter.logits(image[part])
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[part] += logits
            seen[part] += 1
    assert total is not None
    return total / seen


def _starts(side: int, size: int) -> list[int]:
    """Where windows begin along one side; the last one ends with it."""
    step = max(1, int(size * _STRIDE))
    count = 1 + max(0, -(-(side - size) // step))
    return [min(k * step, side - size) for k in range(count)]


def confusion(told: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int) -> Counts:
    """How many pixels of each true class (rows) were told to be of each class (columns)."""
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * num_classes + told[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(counts: Counts, class_names: tuple[str, ...]) -> dict[str, Any]:
    """`miou`, the mean over the classes of intersection over union; `iou_classes` by name, None for a class that is
    neither there nor told; `pixel_accuracy`. Counts (classes, classes) are of all images together, as ADE20K has it."""
    right = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    shares = [float(r / u) if u else None for r, u in zip(right, union, strict=True)]
    known = [share for share in shares if share is not None]
    return {
        "miou": float(np.mean(known)) if known else None,
        "pixel_accuracy": float(right.sum() / max(1, counts.sum())),
        "iou_classes": dict(zip(class_names, shares, strict=True)),
    }


MOST_SHOWN = 4
_LEAST_SCORE = 0.5  # of the objects that are drawn
_HEIGHT = 240
_NAMED = "e6194b 3cb44b 0082c8 ffe119 f58230 911eb4 46f0f0 f032e6 ffffff fabebe 008080 aa6e28 800000 808000"
_COLOURS = np.array([list(bytes.fromhex(colour)) for colour in _NAMED.split()], dtype=np.uint8)


def save_pictures(objective: Objective, source: DenseSource, path: Path, *, device: torch.device) -> None:
    """Writes a PNG with a row for each of some images of `source`: the image, the truth, what was told.

    Objects told with a score below ½ are not drawn. Raises CheckpointError where nothing can be written.
    """
    some = source.some(MOST_SHOWN)
    rows = []
    if isinstance(objective, Detector):
        for index, found in enumerate(detect(objective, some, device=device, batch_size=MOST_SHOWN)):
            pixels, truth = some.records.pixels(some.record(index)), some.records.truth(some.record(index))
            assert isinstance(truth, Objects)
            sure = found.scores >= _LEAST_SCORE
            masks = None if found.masks is None else found.masks[sure]
            told = _drawn(pixels, found.boxes[sure], found.classes[sure], masks)
            rows.append((pixels, _drawn(pixels, truth.boxes, truth.classes, truth.masks), told))
    elif isinstance(objective, Segmenter):
        for index, classes in enumerate(class_maps(objective, some, device=device)):
            pixels, numbers = some.records.pixels(some.record(index)), some.records.truth(some.record(index))
            assert isinstance(numbers, np.ndarray)
            rows.append((pixels, _coloured(pixels, numbers), _coloured(pixels, classes)))
    widths = [round(pixels.shape[1] * _HEIGHT / pixels.shape[0]) for pixels, _, _ in rows]
    sheet = Image.new("RGB", (3 * max(widths) + 16, len(rows) * (_HEIGHT + 8)), "white")
    for k, (row, width) in enumerate(zip(rows, widths, strict=True)):
        for place, picture in enumerate(row):
            shown = Image.fromarray(picture).resize((width, _HEIGHT))
            sheet.paste(shown, (place * (max(widths) + 8), k * (_HEIGHT + 8)))
    try:
        sheet.save(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write here: {error.strerror}") from error


def _drawn(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], classes: NDArray[np.int64], masks: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    shown = pixels.copy()
    for k, mask in enumerate(masks if masks is not None else ()):
        shown[mask] = shown[mask] // 2 + _COLOURS[k % len(_COLOURS)] // 2
    picture = Image.fromarray(shown)
    pen = ImageDraw.Draw(picture)
    for box, kind in zip(boxes, classes, strict=True):
        pen.rectangle([float(side) for side in box], outline=tuple(_COLOURS[kind % len(_COLOURS)].tolist()), width=2)
    return np.asarray(picture)


def _coloured(pixels: NDArray[np.uint8], numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colours = _COLOURS[numbers % len(_COLOURS)]
    colours[numbers == IGNORED] = 0
    return np.asarray(pixels // 3 + colours // 3 * 2, dtype=np.uint8)
