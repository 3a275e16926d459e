"""`coco:FOLDER`: objects in COCO's format, with boxes, and masks as polygons or run lengths.

The layouts of COCO and of tools that export it; NAME is train, and for testing test, val, validation or valid:

    annotations/instances_NAME2017.json    NAME2017/ or images/NAME2017/       COCO, CVAT
    NAME.json                              images/
    NAME/_annotations.coco.json            next to the pictures                Roboflow
    NAME/labels.json                       NAME/data/                          FiftyOne
    annotations/instances_default.json     images/default/ or images/          CVAT; without a test part
    result.json, annotations.json, …       images/, or next to the pictures    Label Studio and others; the same

Not an error: category ids with gaps (classes are numbered in the order of their ids), pictures without objects (they
are negative examples), boxes beyond the border (they are clipped). Boxes that are not finite or have no area, and
missing pictures, are skipped and noted.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.config.load import nearest_path
from isoflop.data.decode import DamagedImage, read_header
from isoflop.data.dense.canvas import file_fingerprint, read_picture
from isoflop.data.dense.objects import Objects
from isoflop.data.records import TEST_NAMES, Note, Part, fingerprint_images, read_image_file
from isoflop.data.source import Task
from isoflop.errors import DataError, stand_in

# A file in COCO's format, wherever tools put it: what can be used of it, and what is left out and why.


Entry = dict[str, Any]
_PARTS: dict[Part, tuple[str, ...]] = {"train": ("train", "training"), "test": (*TEST_NAMES, "valid")}
_ENDLESS = 1e9  # pixels: more than any picture has
_MOST_NAMED = 20
# What Roboflow, FiftyOne, Label Studio, CVAT and others call the file beside its pictures.
_FILES = (
    "_annotations.coco.json",
    "annotations.json",
    "labels.json",
    "result.json",
    "coco.json",
    "instances_default.json",
)
_PICTURES = ("images", "data", "")


@dataclass
class LeftOut:
    """What is not used, by reason, in the order in which it was met."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.found.setdefault(reason, []).append(name)

    @property
    def total(self) -> int:
        return sum(map(len, self.found.values()))

    def notes(self) -> tuple[Note, ...]:
        return tuple(Note(what, tuple(names[:_MOST_NAMED]), len(names)) for what, names in self.found.items())


def find_file(folder: Path, part: Part) -> tuple[Path, list[Path]]:
    """The file of annotations of a part, and the folders in which its pictures may lie, likeliest first.

    Raises DataError where there is none, and tells what was looked for.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder{nearest_path(folder)}")
    lists = [path for place in (folder / "annotations", folder) for path in _sorted_json(place)]
    for name in _PARTS[part]:
        for file in lists:  # `annotations/instances_train2017.json`, `train.json`, `annotations/instances_Train.json`
            stem = file.stem.removeprefix("instances_")
            if re.fullmatch(rf"{name}(\d{{4}})?", stem, re.IGNORECASE):
                named = [f"images/{stem}", stem, f"images/{name}", name]
                return file, _folders(folder, (*named, *(f"{one}/images" for one in named), *_PICTURES))
        for inside in sorted(path for path in folder.iterdir() if path.name.lower() == name and path.is_dir()):
            files = [*_sorted_json(inside), *_sorted_json(inside / "annotations")]
            if (one := _only(files)) is not None:
                places = dict.fromkeys((one.parent, inside, folder))
                return one, [path for place in places for path in _folders(place, _PICTURES)]
    others = [file for file in lists if not _is_of_a_part(file)]
    if part == "train" and (one := _only(others)) is not None:
        stem = one.stem.removeprefix("instances_")
        return one, _folders(folder, (f"images/{stem}", stem, *_PICTURES))
    name = "train" if part == "train" else "val"
    has_one = "; it has one list of annotations and no test part" if part == "test" and _only(others) else ""
    raise DataError(
        f"{folder}: no annotations of its {part} part{has_one}: neither annotations/instances_{name}*.json, "
        f"{name}.json nor {name if part == 'train' else 'valid'}/_annotations.coco.json"
        + (f" nor a single file ({', '.join(_FILES[1:4])})" if part == "train" and not others else "")
        + (f"; of several files, which one? {', '.join(file.name for file in others[:4])}" if len(others) > 1 else "")
    )


def _sorted_json(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _only(files: list[Path]) -> Path | None:
    """The file with a name that is known, or the only one."""
    known = [file for name in _FILES for file in files if file.name == name]
    return known[0] if known else files[0] if len(files) == 1 else None


def _is_of_a_part(file: Path) -> bool:
    words = {word for names in _PARTS.values() for word in names}
    return re.split(r"[\d_]", file.stem.removeprefix("instances_").lower())[0] in words


def _folders(base: Path, names: Iterable[str]) -> list[Path]:
    return [base / name for name in dict.fromkeys(names) if (base / name).is_dir()]


class Pictures:
    """Finds the files of pictures: a name may have folders in front that are not there, another machine's, or be an
    address. Nothing outside of `folders` is ever named."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._listed: dict[str, set[str]] = {}

    def find(self, name: str) -> Path | None:
        """The path of the picture that an annotation calls `name`; None if there is none."""
        parts = [part for part in re.split(r"[\\/]+", name.split("?")[0]) if part not in ("", ".", "..")]
        for start in range(len(parts)):
            for folder in self._folders:
                path = os.path.join(folder, *parts[start:])
                parent, last = os.path.split(path)
                if last in self._names(parent):
                    return Path(path)
        return None

    def _names(self, folder: str) -> set[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = {entry.name for entry in os.scandir(folder) if entry.is_file()}
            except OSError:
                self._listed[folder] = set()
        return self._listed[folder]


@dataclass(frozen=True)
class CocoFile:
    """What can be used of a file: images with `path`, `width` and `height`, and their annotations with the number of
    their `class` and their `box` (left, top, right, bottom) within the image."""

    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    images: list[Entry]
    by_image: dict[int | str, list[Entry]]
    notes: tuple[Note, ...]


def read_coco_file(file: Path, folders: list[Path], *, masks: bool) -> CocoFile:
    """The content of `file`, whose pictures lie in one of `folders`.

    Raises DataError in one line naming file and entry where what it means cannot be known, or most of it cannot be
    used. What else is damaged is left out, and noted with its reason.
    """
    try:
        raw = file.read_bytes()
        if pointer := stand_in(raw[:64]):
            raise DataError(f"{file}: {pointer}")
        found = json.loads(raw.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as annotations: {' '.join(str(error).split())}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(found, dict) or not isinstance(found.get(key), list):
            raise DataError(f"{file}: not in COCO's format: no list of `{key}`")
        if not found[key]:
            raise DataError(f"{file}: its list of `{key}` is empty")
        if not all(isinstance(entry, dict) for entry in found[key]):
            raise DataError(f"{file}: not in COCO's format: `{key}` has an entry that is no table")
    left_out, guessed = LeftOut(), []
    used = {_id(entry.get("category_id")) for entry in found["annotations"]}
    categories, told = _categories(file, found["categories"], used)
    guessed += told
    images = _images(file, found["images"], folders, left_out)
    by_image = _annotations(file, found["annotations"], found["images"], images, categories, left_out, masks=masks)
    return CocoFile(
        tuple(categories),
        tuple(categories.values()),
        list({entry["id"]: entry for entry in images.values()}.values()),
        by_image,
        (*guessed, *left_out.notes()),
    )


def _categories(file: Path, entries: list[Entry], used: set[int | str | None]) -> tuple[dict[int, str], list[Note]]:
    """The name of each category by its id, in the order of the ids; and what was made of them."""
    names: dict[int, str] = {}
    notes = []
    groups = {str(entry["supercategory"]) for entry in entries if entry.get("supercategory")}
    for entry in entries:
        number, name = _id(entry.get("id")), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str | int) or isinstance(name, bool):
            raise DataError(f"{file}: category {entry.get('id')} lacks a whole number as its id, or a name")
        if number in names:
            raise DataError(f"{file}: two categories have the id {number}; give each its own")
        names[number] = str(name)
        # Roboflow puts the name of the whole data set before its classes.
        if number == 0 and number not in used and len(entries) > 1 and str(name) in groups:
            notes.append(Note("categories that only group others", (str(name),), 1))
    for _ in notes:
        del names[0]
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        names = {key: f"{name} (category {key})" if name in twice else name for key, name in names.items()}
        notes.append(Note(f"categories with the same name are distinguished by their ids: {', '.join(twice[:4])}"))
    return dict(sorted(names.items())), notes


def _images(file: Path, entries: list[Entry], folders: list[Path], left_out: LeftOut) -> dict[int | str, Entry]:
    """The images whose files are there, by id, each with its `path`."""
    pictures = Pictures(folders)
    images: dict[int | str, Entry] = {}
    named: dict[int | str, str] = {}
    by_path: dict[Path, Entry] = {}
    for entry in entries:
        number, name = _id(entry.get("id")), entry.get("file_name")
        if number is None or not isinstance(name, str) or not name:
            raise DataError(f"{file}: image {entry.get('id')} lacks an id or a file name")
        if number in named:
            if named[number] != name:
                raise DataError(
                    f"{file}: two images have the id {number}: {named[number]} and {name}; give each its own"
                )
            left_out.add("images that are listed twice", name)
            continue
        named[number] = name
        path = pictures.find(name)
        if path is None:
            left_out.add("images without a file", name)
            continue
        sides = [_whole(entry.get(side)) for side in ("width", "height")]
        if not all(side and side > 0 for side in sides):
            try:
                header = read_header(read_image_file(path))
                sides = [header.width, header.height]
            except (DamagedImage, OSError):
                left_out.add("images without a size", name)
                continue
        if path in by_path:  # two ids of one picture, which would be on both sides of a split
            if by_path[path]["file_name"] != name:
                raise DataError(
                    f"{file}: the images {by_path[path]['file_name']} and {name} are both {path}: which one is it?"
                )
            left_out.add("images that are listed twice", name)
            images[number] = by_path[path]
            continue
        images[number] = by_path[path] = {
            "id": number,
            "file_name": name,
            "path": path,
            "width": sides[0],
            "height": sides[1],
        }
    if not images:
        where = ", ".join(map(str, folders)) or str(file.parent)
        raise DataError(
            f"{file}: none of its {len(named):,} images exists (the first: {entries[0]['file_name']}; looked in "
            f"{where})"
        )
    return images


def _annotations(
    file: Path,
    entries: list[Entry],
    listed: list[Entry],
    images: dict[int | str, Entry],
    categories: dict[int, str],
    left_out: LeftOut,
    *,
    masks: bool,
) -> dict[int | str, list[Entry]]:
    classes = {category: number for number, category in enumerate(categories)}
    known, bad = {_id(entry.get("id")) for entry in listed}, LeftOut()
    by_image: dict[int | str, list[Entry]] = {}
    boxes = []
    for entry in entries:
        where = f"annotation {entry.get('id')}"
        image = _id(entry.get("image_id"))
        if image not in images:
            if image not in known:
                bad.add("annotations of images that there are not", f"{where} of image {entry.get('image_id')}")
            continue
        assert image is not None
        category = _id(entry.get("category_id"))
        if category not in classes:
            raise DataError(
                f"{file}: {where} is of category {entry.get('category_id')}, which is not among the categories"
            )
        crowd = _number(entry.get("iscrowd") or 0, of_switches=True)
        if crowd not in (0, 1):
            raise DataError(f"{file}: {where} has `iscrowd` {entry['iscrowd']}; it is 0 or 1")
        shape = outline(entry.get("segmentation")) if masks or not entry.get("bbox") else None
        box = _box(entry.get("bbox"), shape)
        name = f"{where} of {images[image]['file_name']}"
        if isinstance(box, str):
            bad.add(box, name)
            continue
        boxes.append((box, (images[image]["width"], images[image]["height"])))
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        inside = (
            max(left, 0.0),
            max(top, 0.0),
            min(right, float(images[image]["width"])),
            min(bottom, float(images[image]["height"])),
        )
        if box[2] <= 0 or box[3] <= 0:
            bad.add("boxes without area", name)
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            bad.add("boxes outside of their image", name)
        elif masks and (reason := _unusable_mask(shape, images[image])):
            bad.add(reason, name)
        else:
            own = {"id": entry.get("id"), "class": classes[category], "box": inside, "iscrowd": bool(crowd)}
            own |= {"area": _number(entry.get("area")), "segmentation": shape if masks else None}
            by_image.setdefault(images[image]["id"], []).append(own)
    _check_units(file, boxes)
    if 2 * bad.total > len(entries):
        reason, names = max(bad.found.items(), key=lambda one: len(one[1]))
        advice = "; use this data without `masks=1`, or add the masks" if "mask" in reason else ""
        raise DataError(
            f"{file}: {bad.total:,} of {len(entries):,} annotations cannot be used: {reason} ({names[0]}){advice}"
        )
    for reason, names in bad.found.items():
        for name in names:
            left_out.add(reason, name)
    return by_image


def _check_units(file: Path, boxes: list[tuple[tuple[float, float, float, float], tuple[int, int]]]) -> None:
    """Raises DataError where the boxes are not left, top, width and height in pixels."""
    if not boxes:
        return
    shares = sum(max(map(abs, box)) <= 1.0 and max(size) > 2 for box, size in boxes)
    if 2 * shares > len(boxes):
        raise DataError(
            f"{file}: {shares:,} of {len(boxes):,} boxes are within 0 … 1: they look like fractions of the image, and "
            "COCO's are in pixels: multiply them by its width and height"
        )
    beyond = sum(b[0] + b[2] > 1.01 * w + 1 or b[1] + b[3] > 1.01 * h + 1 for b, (w, h) in boxes)
    corners = sum(b[0] < b[2] <= w + 1 and b[1] < b[3] <= h + 1 for b, (w, h) in boxes)
    if 2 * beyond > len(boxes) and corners == len(boxes):
        raise DataError(
            f"{file}: {beyond:,} of {len(boxes):,} boxes reach beyond their images: they look like left, top, right, "
            "bottom, and COCO's are left, top, width, height"
        )


def _box(value: Any, shape: Any) -> tuple[float, float, float, float] | str:
    """Left, top, width and height; without a box, those of its polygons; or why there are none."""
    if value in (None, []) and isinstance(shape, list) and shape:
        across, down = [x for one in shape for x in one[::2]], [y for one in shape for y in one[1::2]]
        return min(across), min(down), max(across) - min(across), max(down) - min(down)
    if not isinstance(value, list) or len(value) != 4:
        return "boxes that are not four numbers"
    sides = [_number(side, finite=False) for side in value]
    if any(side is None for side in sides):
        return "boxes that are not four numbers"
    numbers = [side for side in sides if side is not None]
    if not all(abs(side) < _ENDLESS for side in numbers):
        return "boxes that are not finite"
    return numbers[0], numbers[1], numbers[2], numbers[3]


def outline(value: Any) -> Any:
    """A segmentation as run lengths or a list of polygons of three points or more; None where it has neither."""
    if isinstance(value, dict):
        return value if value.get("counts") else None
    if not isinstance(value, list) or not value:
        return None
    if not any(isinstance(part, list | dict) for part in value):  # one polygon, not a list of them
        value = [value]
    elif all(isinstance(part, list) and len(part) == 2 for part in value):  # one polygon of points
        value = [[number for point in value for number in point]]
    if len(value) == 1 and isinstance(value[0], dict):
        return outline(value[0])
    polygons = [_polygon(part) for part in value]
    return [polygon for polygon in polygons if polygon] or None


def _polygon(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return None
    numbers = [_number(number) for number in value]
    return None if None in numbers else [number for number in numbers if number is not None]


def _unusable_mask(shape: Any, image: Entry) -> str:
    if shape is None:
        return "objects without a mask"
    if isinstance(shape, dict) and [_whole(side) for side in shape.get("size") or ()] != [
        image["height"],
        image["width"],
    ]:
        return "masks of another size than their image"
    return ""


def _id(value: Any) -> int | str | None:
    """An id, where `"7"` and 7.0 are 7."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) else value
    return value if isinstance(value, int) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _number(value: Any, *, finite: bool = True, of_switches: bool = False) -> float | None:
    """`value` as a number, also one that is written as text; None if it is none."""
    if (isinstance(value, bool) and not of_switches) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if not finite or (math.isfinite(number) and abs(number) < _ENDLESS) else None


# Masks as COCO's files keep them: polygons, and run lengths in numbers or in letters.
#
# The coding is COCO's own algorithm, as faster-coco-eval has it, so that a mask has the bits that it has in
# pycocotools.


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask (height, width) of one object; DamagedImage beginning with `where` if it is none, or of another size."""
    api = _api()
    if isinstance(segmentation, dict):
        sides = segmentation.get("size")
        if not isinstance(sides, list) or tuple(sides) != size:
            told = "×".join(map(str, reversed(sides))) if isinstance(sides, list) else sides
            raise DamagedImage(f"{where} has a mask of {told} pixels, but its image has {size[1]}×{size[0]}")
    elif not isinstance(segmentation, list) or any(not isinstance(p, list) or len(p) < 6 for p in segmentation):
        raise DamagedImage(f"{where} has a mask that is neither run lengths nor polygons of three points or more")
    try:
        coded = api.frPyObjects(segmentation, *size) if not _is_compressed(segmentation) else segmentation
        coded = api.merge(coded) if isinstance(coded, list) else coded
        return np.asarray(api.decode(coded), dtype=bool)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise DamagedImage(f"{where} has a damaged mask: {' '.join(str(error).split())}") from error


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (height, width) as COCO's compressed run lengths, ready for JSON."""
    coded = _api().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = coded["counts"]
    return {
        "size": [int(side) for side in coded["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def _is_compressed(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | bytes)


def _api() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise DataError("masks need the extra `dense`: pip install isoflop[dense]") from error
    return mask


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
