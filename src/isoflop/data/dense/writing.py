"""Scenes written to files, in the formats in which everybody keeps such data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isoflop.data.dense.objects import Objects
from isoflop.data.dense.run_lengths import run_lengths
from isoflop.data.dense.scenes import SceneRecords, class_map
from isoflop.data.records import class_lines
from isoflop.data.source import Split
from isoflop.errors import DataError

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
        raise DataError(f"{folder}: is there already; scenes go into a new folder")
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
