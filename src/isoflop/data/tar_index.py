"""Where each sample lies in tar shards of the WebDataset layout, so that they can be read at random without unpacking.

A sample is a run of members with the same name up to the first dot: an image (`0001.jpg`) and, if it is labelled,
`0001.cls` (a class number or name; several, separated by spaces, for multi-label) or `0001.json` with a key `label`.
Nothing is ever extracted: members are read by offset, so names with `..` and links can do no harm; they are left out
and reported.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.data.quarantine import Damage
from isoflop.data.records import Labels, no_labels, number_names
from isoflop.data.sources.folder import IMAGE_SUFFIXES
from isoflop.data.tar_members import DamagedTar, Member, tar_members
from isoflop.errors import DataError

RECORD = np.dtype([("offset", "<i8"), ("size", "<i8")])
"""Where the encoded image of a sample lies in its shard, in bytes."""

_MOST_LABEL_BYTES = 1 << 20


class ShardIndex(NamedTuple):
    """The samples of one shard."""

    records: NDArray[np.void]
    """(n,) of `RECORD`"""
    labels: list[str | None]
    """the text of each sample's label"""
    problems: list[Damage]
    """what was left out; these samples have no number"""


class _Sample:
    """The members of one sample, as they come."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.image: Member | None = None
        self.label: str | None = None
        self.problem: str | None = None


def index_tar(path: Path, *, name: str) -> ShardIndex:
    """The samples of the tar file at `path`, in its order; `name` is what to call the shard in messages."""
    places: list[tuple[int, int]] = []
    labels: list[str | None] = []
    problems: list[Damage] = []
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        for sample in _samples(file, name, problems):
            image = sample.image
            if image is not None and image.offset + image.size > size:
                sample.problem = "truncated: the shard ends within the image"
            if image is None or sample.problem:
                problems.append(Damage(-1, f"{name}/{sample.key}", sample.problem or "no image with this name"))
                continue
            places.append((image.offset, image.size))
            labels.append(sample.label)
    finally:
        os.close(file)
    return ShardIndex(np.asarray(places, dtype=RECORD), labels, problems)


def _samples(file: int, name: str, problems: list[Damage]) -> Iterator[_Sample]:
    current: _Sample | None = None
    seen: set[str] = set()
    try:
        for member in tar_members(file):
            if member.kind == "directory":
                continue
            folder, _, base = member.name.rpartition("/")
            if unusable := _why_unusable(member, folder):
                problems.append(Damage(-1, f"{name}/{member.name}", unusable))
                continue
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if current is None or key != current.key:
                if current is not None:
                    yield current
                current = _Sample(key)
                if key in seen:
                    current.problem = "the name occurs twice in this shard"
                seen.add(key)
            _add(current, member, extension.lower(), file)
    except DamagedTar as error:
        problems.append(Damage(-1, name, f"damaged tar: {error}"))
    if current is not None:
        yield current


def _why_unusable(member: Member, folder: str) -> str | None:
    if member.kind != "file":
        return "a link, not a file" if member.kind == "link" else "not a regular file"
    return "an unsafe name" if member.name.startswith("/") or ".." in folder.split("/") else None


def _add(sample: _Sample, member: Member, extension: str, file: int) -> None:
    if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES:
        if sample.image is not None:
            sample.problem = "two images with this name"
        sample.image = member
    elif extension in ("cls", "json") and member.size <= _MOST_LABEL_BYTES:
        text = os.pread(file, member.size, member.offset).decode("utf-8", errors="replace")
        label = text.strip() if extension == "cls" else _label_of_json(text) or ""
        if label and not re.fullmatch(r"-\d+", label):  # -1 is said for "unlabelled"
            sample.label = label


def _label_of_json(text: str) -> str | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    label = content.get("label") if isinstance(content, dict) else None
    return " ".join(map(str, label)) if isinstance(label, list) else None if label is None else str(label)


def resolve_labels(texts: list[str | None], class_names: tuple[str, ...], where: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels and class names from the texts of labels: numbers, or names, of which several may be separated by spaces.

    `class_names` are those of the data set if it has a list. A missing text gives -1.
    """
    present = [text for text in texts if text is not None]
    if not present:
        return no_labels(len(texts)), ()
    known = {name: k for k, name in enumerate(class_names)}
    is_numeric = not any(text in known for text in present) and all(
        word.isdecimal() for text in present for word in text.split()
    )
    if not is_numeric and not class_names:
        known = {name: k for k, name in enumerate(sorted(set(present)))}
    is_several = is_numeric and any(" " in text for text in present)
    if not is_numeric:
        if unknown := sorted(set(present) - set(known)):
            raise DataError(f"{where}: label `{unknown[0]}` is not among the {len(known)} classes of classes.txt")
        return np.asarray([-1 if t is None else known[t] for t in texts], dtype=np.int64), tuple(known)
    numbers = [[] if text is None else [int(word) for word in text.split()] for text in texts]
    largest = max(n for row in numbers for n in row)
    names = class_names or number_names(largest, where)
    if largest >= len(names):
        raise DataError(f"{where}: label {largest}, but classes.txt has {len(names)} classes")
    if not is_several:
        return np.asarray([row[0] if row else -1 for row in numbers], dtype=np.int64), names
    several = np.zeros((len(texts), len(names)), dtype=np.uint8)
    for k, row in enumerate(numbers):
        several[k, row] = 1
    return several, names
