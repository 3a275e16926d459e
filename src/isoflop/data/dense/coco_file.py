"""What a file in COCO's format must have, found out before anything is concluded from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isoflop.errors import DataError

Entry = dict[str, Any]
_ENDLESS = 1e9  # pixels: more than any picture has


def read_coco_file(file: Path) -> dict[str, list[Entry]]:
    """Its `images`, `annotations` and `categories`, each entry with what its kind needs.

    Raises DataError in one line naming file and entry where one is damaged, lacks something, says what another one says
    already, or is of an image or a category that there is not.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as annotations: {' '.join(str(error).split())}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(found, dict) or not isinstance(found.get(key), list):
            raise DataError(f"{file}: not in COCO's format: no list of `{key}`")
        if not found[key]:
            raise DataError(f"{file}: its list of `{key}` is empty")
        if not all(isinstance(entry, dict) for entry in found[key]):
            raise DataError(f"{file}: not in COCO's format: `{key}` has an entry that is no table")
    _check_categories(file, found["categories"])
    _check_images(file, found["images"])
    images, categories = ({entry["id"] for entry in found[key]} for key in ("images", "categories"))
    for entry in found["annotations"]:
        _check_annotation(f"{file}: annotation {entry.get('id')}", entry, images, categories)
    return dict(found)


def _check_categories(file: Path, categories: list[Entry]) -> None:
    for entry in categories:
        if not (_is_whole(entry.get("id")) and isinstance(entry.get("name"), str)):
            raise DataError(f"{file}: category {entry.get('id')} lacks a whole number as its id, or a name")
    for key in ("id", "name"):
        if (twice := _twice([entry[key] for entry in categories])) is not None:
            raise DataError(f"{file}: two categories have the {key} {twice}; give each its own")


def _check_images(file: Path, images: list[Entry]) -> None:
    for entry in images:
        sides = (entry.get("width"), entry.get("height"))
        is_named = isinstance(entry.get("id"), int | str) and isinstance(entry.get("file_name"), str)
        if not (is_named and all(_is_whole(side) and side > 0 for side in sides)):  # type: ignore[operator]
            raise DataError(f"{file}: image {entry.get('id')} lacks an id, a file name or a size in whole pixels")
    if (twice := _twice([entry["id"] for entry in images])) is not None:
        raise DataError(f"{file}: two images have the id {twice}; give each its own")


def _check_annotation(where: str, entry: Entry, images: set[Any], categories: set[Any]) -> None:
    image, category, box = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
    if not isinstance(image, int | str) or image not in images:
        raise DataError(f"{where} is of image {image}, which is not among the images")
    if not _is_whole(category) or category not in categories:
        raise DataError(f"{where} is of category {category}, which is not among the categories")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise DataError(f"{where} has no box of four numbers")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise DataError(f"{where} has `iscrowd` {entry['iscrowd']}; it is 0 or 1")
    if entry.get("area") is not None and not _is_number(entry["area"]):
        raise DataError(f"{where} has an `area` that is no number")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _ENDLESS


def _twice(values: list[Any]) -> Any:
    """The first of `values` that has been there before; None if there is none."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
