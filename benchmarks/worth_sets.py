"""The data sets of `worth.py`: stored images, parts of them, crops of pictures with boxes or maps, generated fractals.

What has to be made is made once, as Parquet with a training and a test part. Subsets are drawn from the training part
by a fixed seed; the test part is the data set's own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from isoflop.data import open_source
from isoflop.data.opening import open_records
from isoflop.errors import DataError

SEED = 0  # of subsets and crops
Labelled = Iterator[tuple[bytes, int]]  # an encoded image and its class
Parts = dict[str, Callable[[], Labelled]]  # train and test

BLOOD_CELLS = ("RBC", "WBC", "Platelets")
STREETS = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def write_parquet(folder: Path, class_names: tuple[str, ...], parts: Parts) -> str:
    """Writes each part to `folder` unless it is there; returns the URI."""
    folder.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": class_names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    for part, rows in parts.items():
        path = folder / f"{part}.parquet"
        if not path.exists():
            pairs = list(rows())
            columns = {"image": [{"bytes": b, "path": None} for b, _ in pairs], "label": [label for _, label in pairs]}
            partial_file = folder / f".{part}"
            pq.write_table(pa.table(columns, schema=schema), partial_file, row_group_size=1000)
            partial_file.replace(path)
    return f"parquet:{folder}"


def stored(name: str, data: Path, _: Path) -> str:
    """The folder `name` of `data` as it is."""
    return f"parquet:{data / name}"


def subset(name: str, images: int, data: Path, made: Path) -> str:
    """`images` of the training part of the folder `name`, and its whole test part."""
    uri = stored(name, data, made)

    def rows(part: str) -> Labelled:
        records = open_records(uri, "test" if part == "test" else "train")
        chosen = np.arange(len(records))
        if part == "train":
            chosen = np.sort(np.random.default_rng(SEED).permutation(len(records))[:images])
        for index in chosen.tolist():
            yield records.read(index), int(records.labels[index])

    names = tuple(open_records(uri, "train").class_names)
    return write_parquet(made / f"{name}_{images}", names, {part: partial(rows, part) for part in ("train", "test")})


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def balanced(found: list[tuple[str, tuple[int, int, int, int], int]], most: int) -> Labelled:
    """The crops (file, box, class): at most `most` of each class, drawn by the seed, in the order of the files."""
    order, kept = np.random.default_rng(SEED).permutation(len(found)).tolist(), []
    counts: dict[int, int] = {}
    for number in order:
        label = found[number][2]
        if counts.get(label, 0) < most:
            counts[label] = counts.get(label, 0) + 1
            kept.append(number)
    opened: tuple[str, Image.Image] | None = None
    for number in sorted(kept):
        path, box, label = found[number]
        if opened is None or opened[0] != path:
            opened = path, Image.open(path).convert("RGB")
        yield png(opened[1].crop(box)), label


def blood_cells(data: Path, made: Path) -> str:
    """BCCD's cells, cut out as squares around their boxes; red cells, of which there are most, at most 400."""
    folder = data / "bccd"

    def rows(files: tuple[str, ...], most: int) -> Labelled:
        found = []
        for file in files:
            table = json.loads((folder / file).read_text(encoding="utf-8"))
            names = {each["id"]: each["name"] for each in table["categories"]}
            images = {each["id"]: each for each in table["images"]}
            for cell in table["annotations"]:
                image, (x, y, w, h) = images[cell["image_id"]], cell["bbox"]
                side = round(min(1.1 * max(w, h), image["width"], image["height"]))
                left = int(min(max(0, x + w / 2 - side / 2), image["width"] - side))
                top = int(min(max(0, y + h / 2 - side / 2), image["height"] - side))
                label = BLOOD_CELLS.index(names[cell["category_id"]])
                if min(w, h) >= 8:
                    path = str(folder / "images" / image["file_name"])
                    found.append((path, (left, top, left + side, top + side), label))
        return balanced(found, most)

    parts = {
        "train": partial(rows, ("train.json", "val.json"), 400),
        "test": partial(rows, ("test.json",), 100),
    }
    return write_parquet(made / "bccd", BLOOD_CELLS, parts)


def street_crops(data: Path, made: Path) -> str:
    """CamVid: squares of 64 px whose middle is of one class; the pictures of its "val" are the test part."""
    folder = data / "camvid"
    side, middle, tries = 64, 2, 400

    def rows(split: str, most: int) -> Labelled:
        found = []
        for number, path in enumerate(sorted((folder / "images" / split).glob("*.jpg"))):
            classes = np.asarray(Image.open(folder / "annotations" / split / f"{path.stem}.png"))
            rng = np.random.default_rng((SEED, number))
            tops = rng.integers(0, classes.shape[0] - side + 1, tries).tolist()
            lefts = rng.integers(0, classes.shape[1] - side + 1, tries).tolist()
            seen: dict[int, int] = {}
            for top, left in zip(tops, lefts, strict=True):
                y, x = top + side // 2, left + side // 2
                inside = classes[y - middle : y + middle, x - middle : x + middle]
                label = int(inside[0, 0])
                if label < len(STREETS) and (inside == label).mean() >= 0.9 and seen.get(label, 0) < 2:
                    seen[label] = seen.get(label, 0) + 1
                    found.append((str(path), (left, top, left + side, top + side), label))
        return balanced(found, most)

    parts = {"train": partial(rows, "train", 200), "test": partial(rows, "val", 100)}
    return write_parquet(made / "camvid", tuple(STREETS), parts)


def fractals(data: Path, made: Path) -> str:
    """5,000 generated fractals of 100 classes, equally often, and 2,000 for the test."""
    size, counts = 32, {"train": 5000, "test": 2000}

    def rows(part: str) -> Labelled:
        split = "test" if part == "test" else "train"
        source = open_source(f"fractals?classes={FRACTALS}&zipf=0", split=split, image_size=size)
        images, labels = source.read(np.arange(counts[part], dtype=np.int64))
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            yield png(Image.fromarray(image[0])), label

    names = tuple(f"fractal {number}" for number in range(FRACTALS))
    return write_parquet(made / "fractals", names, {part: partial(rows, part) for part in counts})


FRACTALS = 100  # classes


@dataclass(frozen=True)
class NamedSet:
    """A data set by name: the folder that it needs in the folder of stored data, and how its URI is made of that and
    of the folder for what is made."""

    needs: str
    image_size: int
    make: Callable[[Path, Path], str]


SETS = {
    "cifar10_1000": NamedSet("cifar10", 32, partial(subset, "cifar10", 1000)),
    "cifar10_5000": NamedSet("cifar10", 32, partial(subset, "cifar10", 5000)),
    "cifar10": NamedSet("cifar10", 32, partial(stored, "cifar10")),
    "imagenet64_100_5000": NamedSet("imagenet64_100", 64, partial(subset, "imagenet64_100", 5000)),
    "imagenet64_100": NamedSet("imagenet64_100", 64, partial(stored, "imagenet64_100")),
    "bccd": NamedSet("bccd", 32, blood_cells),
    "camvid": NamedSet("camvid", 64, street_crops),
    "fractals": NamedSet("", 32, fractals),
}


def locate(name: str, data: Path | None, made: Path, image_size: int) -> tuple[str, int]:
    """URI and image size of a named set, or of a URI of the user's own; DataError where its folder is not there."""
    if name not in SETS:
        return name, image_size
    chosen = SETS[name]
    if chosen.needs and (data is None or not (data / chosen.needs).is_dir()):
        where = "give --data FOLDER, which has it" if data is None else f"{data} has no folder {chosen.needs}"
        raise DataError(f"the set {name} is made of {chosen.needs}: {where}")
    return chosen.make(data or Path(), made), chosen.image_size
