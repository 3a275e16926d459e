"""`coco:FOLDER`: objects in COCO's format, with boxes, and masks as polygons or run lengths.

Two layouts are known: `annotations/instances_train*.json` beside `train*/`, as COCO is unpacked; and `train.json`
beside `images/`. The test part is COCO's val, or `test.json` where there is one.

What is not an error: category ids with gaps (classes are numbered in the order of their ids), pictures without objects
(they are shown, and teach what is nothing), boxes that reach over the border (they are cut), and boxes without area or
wholly outside (they are left out, with one warning).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.config.nearest import nearest_path
from isoflop.data.dense.coco_file import Entry, read_coco_file
from isoflop.data.dense.objects import Objects, Task
from isoflop.data.dense.pictures import file_fingerprint, read_picture
from isoflop.data.dense.run_lengths import mask_of
from isoflop.data.records import Part, fingerprint_images
from isoflop.errors import DataError


class CocoRecords:
    """One part of a data set in COCO's format; see this module's first lines.

    Raises DataError for a file that is missing, empty or not of the format, for annotations of unknown images or
    categories, and with `masks` for annotations without any.
    """

    task: Task = "detect"

    def __init__(self, folder: Path, part: Part, *, masks: bool = False) -> None:
        self.uri = f"coco:{folder}"
        self.has_masks = masks
        self._file, self._images = _find(folder, part)
        found = read_coco_file(self._file)
        categories = sorted(found["categories"], key=lambda category: category["id"])
        self.category_ids = tuple(int(category["id"]) for category in categories)
        self.class_names = tuple(str(category["name"]) for category in categories)
        self.entries: list[Entry] = found["images"]
        content = fingerprint_images([str(entry["file_name"]) for entry in self.entries], self._images)
        self.fingerprint = file_fingerprint(self._file, f"{masks} {content}")
        numbers = {category: number for number, category in enumerate(self.category_ids)}
        self._by_image = self._placed(found["annotations"], numbers)

    def _placed(self, annotations: list[Entry], numbers: dict[int, int]) -> dict[int | str, list[Entry]]:
        """The annotations of each image, by its id, with `box` cut at its border and the number of its `class`."""
        sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in self.entries}
        by_image: dict[int | str, list[Entry]] = defaultdict(list)
        left_out = 0
        for annotation in annotations:
            if self.has_masks and not annotation.get("segmentation"):
                raise DataError(
                    f"{self._file}: annotation {annotation.get('id')} has no mask; use this data without `masks=1`, or "
                    "add the masks"
                )
            image = annotation["image_id"]
            left, top, width, height = map(float, annotation["bbox"])
            width, height = (
                min(left + width, sizes[image][0]) - max(left, 0),
                min(top + height, sizes[image][1]) - max(top, 0),
            )
            if width <= 0 or height <= 0:
                left_out += 1
                continue
            left, top = max(left, 0.0), max(top, 0.0)
            number = numbers[annotation["category_id"]]
            by_image[image].append({**annotation, "box": (left, top, left + width, top + height), "class": number})
        if left_out:
            warnings.warn(f"{self._file}: boxes left out, of which no area is in their image: {left_out}", stacklevel=3)
        return by_image

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """See `DenseRecords.name`."""
        return str(self._images / self.entries[index]["file_name"])

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `DenseRecords.pixels`."""
        entry = self.entries[index]
        pixels = read_picture(Path(self.name(index)))
        if pixels.shape[:2] != (entry["height"], entry["width"]):
            raise DataError(
                f"{self.name(index)}: {pixels.shape[1]}×{pixels.shape[0]} pixels, but {self._file.name} says "
                f"{entry['width']}×{entry['height']}"
            )
        return pixels

    def truth(self, index: int) -> Objects:
        """See `DenseRecords.truth`."""
        entry = self.entries[index]
        found = self._by_image.get(entry["id"], [])
        size = (entry["height"], entry["width"])
        boxes = np.array([a["box"] for a in found], np.float32).reshape(-1, 4)
        masks = None
        if self.has_masks:
            masks = np.zeros((len(found), *size), dtype=bool)
            for k, annotation in enumerate(found):
                masks[k] = mask_of(annotation["segmentation"], size, f"{self._file}: annotation {annotation.get('id')}")
        whole = [(a["box"][2] - a["box"][0]) * (a["box"][3] - a["box"][1]) for a in found]
        areas = [box if a.get("area") is None else a["area"] for a, box in zip(found, whole, strict=True)]
        return Objects(
            boxes,
            np.array([a["class"] for a in found], np.int64),
            np.array([bool(a.get("iscrowd", 0)) for a in found], bool),
            np.array(areas, np.float32),
            masks,
        )


def _find(folder: Path, part: Part) -> tuple[Path, Path]:
    """The file of annotations and the folder of pictures."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder{nearest_path(folder)}")
    for name in ("train",) if part == "train" else ("test", "val"):
        for file in sorted((folder / "annotations").glob(f"instances_{name}*.json")):
            return file, folder / file.stem.removeprefix("instances_")
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json", folder / "images"
    wanted = "train.json" if part == "train" else "test.json or val.json"
    raise DataError(f"{folder}: neither annotations/instances_{part if part == 'train' else 'val'}*.json nor {wanted}")
