"""Scenes: generated fractals on a background, with exact masks, boxes and maps of classes.

A scene is a pure function of (seed, index). The mask of an object is the area that its fractal encloses. Later objects
occlude earlier ones, and an object is removed if less than a quarter of it is visible.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from isoflop.data.dense.canvas import box_of
from isoflop.data.dense.coco import run_lengths
from isoflop.data.dense.objects import Objects
from isoflop.data.order import derive_key, uniforms
from isoflop.data.records import Note, class_lines
from isoflop.data.source import Split, Task
from isoflop.data.sources.fractals import draw, orbits
from isoflop.errors import DataError

MOST_OBJECTS = 12
_LEAST_SEEN = 0.25
_SPLITS: dict[Split, int] = {"train": 0, "heldout": 1 << 40, "test": 1 << 41}  # the first scene of each


def scene(index: int, *, size: int, classes: int, seed: int = 0) -> tuple[NDArray[np.uint8], Objects]:
    """The picture uint8 (size, size, 3) and the 1 to 12 objects of scene `index`, in the order in which they lie."""
    u = uniforms(derive_key("scenes", seed), 0, np.array([index]), 8 + 12 * MOST_OBJECTS)[0]
    pixels = _background(size, u[:8])
    count = 1 + int(u[7] ** 1.5 * MOST_OBJECTS)
    owner = np.full((size, size), -1)
    kinds, whole = np.empty(count, np.int64), np.empty(count)
    for k in range(count):
        v = u[8 + 12 * k : 20 + 12 * k]
        side = round(size * (0.12 + 0.33 * v[0] ** 2)) // 2 * 2
        picture, kind = draw(
            np.array([index * MOST_OBJECTS + k]), size=max(side, 8), shares=np.full(classes, 1 / classes), seed=seed
        )
        kinds[k] = kind[0]
        grey = picture[0, 0] / 255.0
        shape = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(grey > 0, 2), iterations=2))[2:-2, 2:-2]
        shape = _largest(shape)
        side = len(grey)
        top, left = int(v[1] * (size - side)), int(v[2] * (size - side))
        colour, light = 40 + 215 * v[3:6], 40 + 215 * v[6:9]
        painted = colour + (light - colour) * grey[..., None]
        part = pixels[top : top + side, left : left + side]
        part[shape] = painted[shape]
        owner[top : top + side, left : left + side][shape] = k
        whole[k] = shape.sum()
    masks = owner[None] == np.arange(count)[:, None, None]
    areas = masks.sum(axis=(1, 2))
    kept = areas >= np.maximum(_LEAST_SEEN * whole, 4)
    boxes = np.array([box_of(mask) for mask in masks[kept]], np.float32).reshape(-1, 4)
    objects = Objects(boxes, kinds[kept], np.zeros(int(kept.sum()), bool), areas[kept].astype(np.float32), masks[kept])
    return pixels.clip(0, 255).astype(np.uint8), objects


def class_map(objects: Objects, size: int) -> NDArray[np.uint8]:
    """The class of each pixel (size, size): 0 the background, then those of the objects, one higher."""
    numbers = np.zeros((size, size), np.uint8)
    if objects.masks is not None:
        for mask, kind in zip(objects.masks, objects.classes, strict=True):
            numbers[mask] = kind + 1
    return numbers


class SceneRecords:
    """One split of the scenes as records; `task` "segment" gives maps of classes, of which 0 is the background.

    Raises DataError for sizes and numbers of classes that cannot be drawn.
    """

    has_masks = True
    notes: tuple[Note, ...] = ()

    def __init__(self, split: Split, *, size: int, classes: int, images: int, task: Task, seed: int = 0) -> None:
        if not 32 <= size <= 512:
            raise DataError(f"scenes are drawn at 32 to 512 px, not {size}")
        if not 2 <= classes <= 254:
            raise DataError(f"scenes have 2 to 254 classes, not {classes}")
        if images < 1:
            raise DataError(f"scenes?images={images}: at least one")
        orbits(classes, seed)  # computed here, so that forked workers share it
        self.uri = f"scenes?classes={classes}&images={images}&task={task}"
        self.task: Task = task
        names = [f"fractal {c}" for c in range(classes)]
        self.class_names = tuple(names if task == "detect" else ["background", *names])
        self.fingerprint = f"{derive_key('scenes-v1', self.uri, size, seed, split):016x}"
        self._first, self._count = _SPLITS[split], images
        self._size, self._classes, self._seed = size, classes, seed
        self._last: tuple[int, tuple[NDArray[np.uint8], Objects]] | None = None

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """See `DenseRecords.name`."""
        return f"scene {index}"

    def read(self, index: int) -> bytes:
        """See `DenseRecords.read`: as PNG."""
        file = io.BytesIO()
        Image.fromarray(self.pixels(index)).save(file, "PNG")
        return file.getvalue()

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `DenseRecords.pixels`."""
        return self._scene(index)[0]

    def truth(self, index: int) -> Objects | NDArray[np.uint8]:
        """See `DenseRecords.truth`."""
        objects = self._scene(index)[1]
        return objects if self.task == "detect" else class_map(objects, self._size)

    def _scene(self, index: int) -> tuple[NDArray[np.uint8], Objects]:
        if self._last is None or self._last[0] != index:  # a picture and its truth are asked for one after the other
            made = scene(self._first + index, size=self._size, classes=self._classes, seed=self._seed)
            self._last = (index, made)
        return self._last[1]


def _background(size: int, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two colours that flow into each other, float64 (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * ((1 + 2 * u[0]) * (x * np.cos(6.3 * u[1]) + y * np.sin(6.3 * u[1])) + u[2]))
    one, other = 40 + 100 * u[3:6], 40 + 100 * u[[5, 6, 3]]
    return np.asarray(one + (other - one) * wave[..., None])


def _largest(shape: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part: an object is in one piece when nothing lies on it."""
    labelled, count = ndimage.label(shape)
    if count < 2:
        return shape
    return np.asarray(labelled == 1 + int(np.argmax(np.bincount(labelled.ravel())[1:])))


# Scenes written to files, in the formats in which everybody keeps such data.


_PARTS: dict[str, Split] = {"train": "train", "val": "test"}


def write_scenes(
    folder: Path,
    *,
    images: int,
    val_images: int,
    size: int,
    classes: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes scenes into the new folder `folder`, readable as `coco:folder` and as `ade20k:folder`.

        images/train/000000.png        annotations/train/000000.png, 0 is the background        train.json
        images/val/…                   annotations/val/…              classes.txt               val.json

    Raises DataError if the folder has something in it or cannot be written, and for what cannot be drawn.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists already; scenes need a new folder")
    counts = {"train": images, "val": val_images}
    done = 0
    try:
        for part, split in _PARTS.items():
            records = SceneRecords(split, size=size, classes=classes, images=counts[part], task="detect", seed=seed)
            for kind in ("images", "annotations"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            entries: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in range(len(records)):
                name = f"{part}/{index:06d}.png"
                objects = records.truth(index)
                assert isinstance(objects, Objects)
                Image.fromarray(records.pixels(index)).save(folder / "images" / name)
                Image.fromarray(class_map(objects, size)).save(folder / "annotations" / name)
                entries.append({"id": index + 1, "file_name": name, "width": size, "height": size})
                annotations += _annotations(objects, index + 1, len(annotations))
                done += 1
                progress(done, images + val_images)
            categories = [{"id": c + 1, "name": name} for c, name in enumerate(records.class_names)]
            found = {"images": entries, "annotations": annotations, "categories": categories}
            (folder / f"{part}.json").write_text(json.dumps(found), encoding="utf-8")
            (folder / "classes.txt").write_text(
                class_lines(["background", *records.class_names], folder), encoding="utf-8"
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot write here: {error.strerror}") from error


def _annotations(objects: Objects, image: int, before: int) -> list[dict[str, Any]]:
    assert objects.masks is not None
    rows = []
    for k, (box, kind, mask) in enumerate(zip(objects.boxes, objects.classes, objects.masks, strict=True)):
        left, top, right, bottom = (float(side) for side in box)
        rows.append(
            {
                "id": before + k + 1,
                "image_id": image,
                "category_id": int(kind) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(np.count_nonzero(mask)),
                "iscrowd": 0,
                "segmentation": run_lengths(mask),
            }
        )
    return rows
