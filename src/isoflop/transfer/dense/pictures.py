"""Pictures of what was found beside what is there: nothing shows sooner that a box is off by a factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from isoflop.data.dense import DenseSource, Objects
from isoflop.data.dense.objects import IGNORED
from isoflop.errors import CheckpointError
from isoflop.objectives import Objective
from isoflop.objectives.dense.detector import Detector
from isoflop.objectives.dense.segmenter import Segmenter
from isoflop.transfer.dense.detections import detect
from isoflop.transfer.dense.pixels import class_maps

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
