"""`coco:FOLDER`: objects in COCO's format, with boxes, and masks as polygons or run lengths.

As COCO is unpacked, and as tools export it; NAME is train, and for testing test, val, validation or valid:

    annotations/instances_NAME2017.json    NAME2017/ or images/NAME2017/       COCO, CVAT
    NAME.json                              images/
    NAME/_annotations.coco.json            beside the pictures                 Roboflow
    NAME/labels.json                       NAME/data/                          FiftyOne
    annotations/instances_default.json     images/default/ or images/          CVAT; there is no part for testing
    result.json, annotations.json, …       images/, or beside the pictures     Label Studio and others, in the same way

What is not an error: category ids with gaps (classes are numbered in the order of their ids), pictures without objects
(they are shown, and teach what is nothing), boxes that reach over the border (they are cut). Boxes that are not finite
or without area, and pictures that are not there, are left out, and noted.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.data.decode import DamagedImage
from isoflop.data.dense.coco_file import find_file, read_coco_file
from isoflop.data.dense.objects import Objects, Task
from isoflop.data.dense.pictures import file_fingerprint, read_picture
from isoflop.data.dense.run_lengths import mask_of
from isoflop.data.records import Part, fingerprint_images, read_image_file


class CocoRecords:
    """One part of a data set in COCO's format; see this module's first lines.

    Raises DataError for a file that is missing, empty or not of the format, and where most of it cannot be used.
    """

    task: Task = "detect"

    def __init__(self, folder: Path, part: Part, *, masks: bool = False) -> None:
        self.uri = f"coco:{folder}"
        self.has_masks = masks
        self._file, folders = find_file(folder, part)
        found = read_coco_file(self._file, folders, masks=masks)
        self.category_ids, self.class_names = found.category_ids, found.class_names
        self.entries, self._by_image, self.notes = found.images, found.by_image, found.notes
        first = self.entries[0]
        base = str(first["path"]).removesuffix(first["file_name"]) or "."
        names = [os.path.relpath(entry["path"], base) for entry in self.entries]
        content = fingerprint_images(names, Path(base))
        self.fingerprint = file_fingerprint(self._file, f"{masks} {content}")

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """See `DenseRecords.name`."""
        return str(self.entries[index]["path"])

    def read(self, index: int) -> bytes:
        """See `DenseRecords.read`."""
        return read_image_file(self.entries[index]["path"])

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `DenseRecords.pixels`."""
        entry = self.entries[index]
        pixels = read_picture(self, index)
        if pixels.shape[:2] != (entry["height"], entry["width"]):
            raise DamagedImage(
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
            name = self.name(index)
            masks = np.zeros((len(found), *size), dtype=bool)
            for k, annotation in enumerate(found):
                masks[k] = mask_of(annotation["segmentation"], size, f"{name}: annotation {annotation['id']}")
        whole = [(a["box"][2] - a["box"][0]) * (a["box"][3] - a["box"][1]) for a in found]
        areas = [box if a["area"] is None else a["area"] for a, box in zip(found, whole, strict=True)]
        return Objects(
            boxes,
            np.array([a["class"] for a in found], np.int64),
            np.array([a["iscrowd"] for a in found], bool),
            np.array(areas, np.float32),
            masks,
        )
