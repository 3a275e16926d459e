"""Published data sets as unpacked; class and part of each file come from the lists of the data set.

    pets:PATH       Oxford-IIIT Pet: images/, annotations/trainval.txt and test.txt
    flowers:PATH    Oxford Flowers 102: jpg/, imagelabels.mat, setid.mat; training and validation images train
    caltech101:PATH 101_ObjectCategories/, of which a fixed set of 30 images per class train
    birds:PATH      CUB-200-2011: images/, images.txt, image_class_labels.txt, train_test_split.txt
    cifar:PATH      CIFAR-10 or CIFAR-100, binary version
    imagenet_v2:PATH    folders 0 … 999, whose names are the labels (not in alphabetic order)
    imagenet_real:PATH  ImageNet's validation images and real.json (arXiv 2006.07159): every correct class of each
    objectnet:PATH      images/ and mappings/; the images whose class is one or several of ImageNet's

The last three are test sets of ImageNet's 1,000 classes and have no training part.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isoflop.data.decode import DamagedImage, decode_whole, read_header
from isoflop.data.order import derive_key
from isoflop.data.records import Labels, Note, Part, check_labels, fingerprint_images, read_image_file
from isoflop.errors import DataError

IMAGENET_CLASSES = 1000
_CALTECH_SHOTS = 30
_OBJECTNET_BORDER = 2  # red pixels around every image


class ListedRecords:
    """Image files with labels from a list."""

    shard_sizes: NDArray[np.int64] | None = None
    notes: tuple[Note, ...] = ()

    def __init__(
        self, uri: str, files: list[Path], labels: Labels, class_names: tuple[str, ...], border: int = 0
    ) -> None:
        if not files:
            raise DataError(f"{uri}: no images")
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise DataError(f"{uri}: {missing} is listed and not there")
        if labels.ndim == 1:
            check_labels(labels.astype(np.int64), len(class_names), uri)
        self.uri, self.labels, self.class_names = uri, labels, class_names
        self._files, self._border = files, border
        folder = Path(os.path.commonpath([file.parent for file in files]))
        content = fingerprint_images([str(file.relative_to(folder)) for file in files], folder)
        self.fingerprint = f"{derive_key(uri.partition(':')[0], content, labels.tobytes().hex()):016x}"

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        encoded = read_image_file(self._files[index])
        return _without_border(encoded, self._border) if self._border else encoded

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return str(self._files[index])


class CifarRecords:
    """Rows of the binary version: one or two labels, then 3,072 bytes of red, green and blue planes of 32 × 32."""

    shard_sizes: NDArray[np.int64] | None = None
    notes: tuple[Note, ...] = ()

    def __init__(self, path: Path, part: Part) -> None:
        self.uri = f"cifar:{path}"
        coarse = (path / "fine_label_names.txt").is_file()
        names = path / ("fine_label_names.txt" if coarse else "batches.meta.txt")
        files = sorted(path.glob(("train.bin" if coarse else "data_batch_*.bin") if part == "train" else "test*.bin"))
        if not files or not names.is_file():
            raise DataError(f"{self.uri}: no binary version of CIFAR-10 or CIFAR-100 ({names.name} and *.bin) there")
        width = 3072 + 1 + coarse
        blocks = [np.fromfile(file, dtype=np.uint8) for file in files]
        for file, block in zip(files, blocks, strict=True):
            if len(block) % width:
                raise DataError(f"{file}: {len(block)} bytes are not whole rows of {width}")
        rows = np.concatenate(blocks).reshape(-1, width)
        self.class_names = tuple(names.read_text().split())
        self.labels: Labels = rows[:, int(coarse)].astype(np.int64)
        check_labels(self.labels, len(self.class_names), self.uri)
        self._pixels = rows[:, 1 + coarse :].reshape(-1, 3, 32, 32)
        self.fingerprint = f"{derive_key('cifar', rows[:: max(1, len(rows) // 64)].tobytes().hex(), len(rows)):016x}"

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        return _bmp(Image.fromarray(np.ascontiguousarray(self._pixels[index].transpose(1, 2, 0))))

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return f"{self.uri} row {index}"


def pets(path: Path, part: Part) -> ListedRecords:
    """Oxford-IIIT Pet, 37 breeds: 3,680 training and 3,669 test images."""
    uri = f"pets:{path}"
    lines = _lines(path / "annotations" / ("trainval.txt" if part == "train" else "test.txt"), uri)
    rows = [line.split() for line in lines if not line.startswith("#")]
    numbers = {int(row[1]): row[0].rpartition("_")[0] for row in rows}
    names = tuple(numbers.get(k + 1, str(k + 1)) for k in range(max(numbers)))
    files = [path / "images" / f"{row[0]}.jpg" for row in rows]
    return ListedRecords(uri, files, np.asarray([int(row[1]) - 1 for row in rows]), names)


def flowers(path: Path, part: Part) -> ListedRecords:
    """Oxford Flowers 102: 2,040 training and validation images, 6,149 test images."""
    from scipy.io import loadmat

    uri = f"flowers:{path}"
    try:
        labels = loadmat(path / "imagelabels.mat")["labels"][0].astype(np.int64) - 1
        sets = loadmat(path / "setid.mat")
        keys = ("trnid", "valid") if part == "train" else ("tstid",)
        numbers = np.sort(np.concatenate([sets[key][0] for key in keys]).astype(np.int64))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{uri}: imagelabels.mat and setid.mat are needed beside jpg/ ({error})") from error
    files = [path / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    return ListedRecords(uri, files, labels[numbers - 1], tuple(str(k + 1) for k in range(int(labels.max()) + 1)))


def caltech101(path: Path, part: Part) -> ListedRecords:
    """Caltech-101 with its background class: 30 images of each of 102 classes train, the others test."""
    uri = f"caltech101:{path}"
    root = path / "101_ObjectCategories" if (path / "101_ObjectCategories").is_dir() else path
    classes = sorted(folder for folder in root.glob("*") if folder.is_dir()) if root.is_dir() else []
    if not classes:
        raise DataError(f"{uri}: no 101_ObjectCategories there")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        images = sorted(folder.glob("*.jpg"), key=lambda file: derive_key("caltech101", file.parent.name, file.name))
        chosen = sorted(images[:_CALTECH_SHOTS] if part == "train" else images[_CALTECH_SHOTS:])
        files += chosen
        labels += [label] * len(chosen)
    return ListedRecords(uri, files, np.asarray(labels, dtype=np.int64), tuple(folder.name for folder in classes))


def birds(path: Path, part: Part) -> ListedRecords:
    """Caltech-UCSD Birds 200-2011: 5,994 training and 5,794 test images."""
    uri = f"birds:{path}"
    tables = [
        dict(line.split(maxsplit=1) for line in _lines(path / f"{name}.txt", uri))
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    ]
    images, classes, split, names = tables
    chosen = sorted((key for key in images if (split[key] == "1") == (part == "train")), key=int)
    labels = np.asarray([int(classes[key]) - 1 for key in chosen], dtype=np.int64)
    return ListedRecords(uri, [path / "images" / images[k] for k in chosen], labels, tuple(names.values()))


def imagenet_v2(path: Path, part: Part) -> ListedRecords:
    """ImageNet-V2 (arXiv 1902.10811): 10,000 new test images in folders named 0 … 999."""
    uri = _test_only(f"imagenet_v2:{path}", part)
    folders = [folder for folder in path.glob("*") if folder.is_dir()] if path.is_dir() else []
    wrong = next((f.name for f in folders if not f.name.isdigit() or int(f.name) >= IMAGENET_CLASSES), None)
    if wrong is not None or not folders:
        found = f"a folder `{wrong}`" if wrong is not None else "none"
        raise DataError(f"{uri}: expected folders named 0 to 999, found {found}")
    pairs = [(file, int(folder.name)) for folder in folders for file in folder.iterdir() if file.is_file()]
    pairs.sort(key=lambda pair: (pair[1], pair[0].name))
    return ListedRecords(uri, [file for file, _ in pairs], np.asarray([k for _, k in pairs]), _imagenet_names())


def imagenet_real(path: Path, part: Part) -> ListedRecords:
    """ImageNet's validation images under the reassessed labels (arXiv 2006.07159); those without any are left out."""
    uri = _test_only(f"imagenet_real:{path}", part)
    try:
        listed = json.loads((path / "real.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{uri}: real.json is needed beside the images ({error})") from error
    files = sorted(path.rglob("ILSVRC2012_val_*"), key=lambda file: file.name)
    if len(files) != len(listed):
        raise DataError(f"{uri}: {len(files)} validation images, but real.json has labels for {len(listed)}")
    kept = [k for k, classes in enumerate(listed) if classes]
    labels = _several([listed[k] for k in kept], uri)
    return ListedRecords(uri, [files[k] for k in kept], labels, _imagenet_names())


def objectnet(path: Path, part: Part) -> ListedRecords:
    """ObjectNet's images of classes that ImageNet has; each may be several of them, and any counts as right."""
    uri = _test_only(f"objectnet:{path}", part)
    mappings = path / "mappings"
    try:
        folder_labels = json.loads((mappings / "folder_to_objectnet_label.json").read_text())
        to_imagenet = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text())
        lines = (mappings / "imagenet_to_label_2012_v2").read_text().splitlines()
        order = json.loads((mappings / "pytorch_to_imagenet_2012_id.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{uri}: its mappings/ are needed ({error})") from error
    place = {int(imagenet): int(pytorch) for pytorch, imagenet in order.items()}
    number = {line.strip(): place[k] for k, line in enumerate(lines) if k in place}
    classes = {label: [number[n] for n in names.split("; ") if n in number] for label, names in to_imagenet.items()}
    files: list[Path] = []
    right: list[list[int]] = []
    for folder in sorted((path / "images").glob("*")):
        mapped = classes.get(folder_labels.get(folder.name, ""), [])
        images = sorted(file for file in folder.iterdir() if file.is_file()) if mapped else []
        files += images
        right += [mapped] * len(images)
    return ListedRecords(uri, files, _several(right, uri), _imagenet_names(), border=_OBJECTNET_BORDER)


PUBLISHED: dict[str, Callable[[Path, Part], Any]] = {
    "pets": pets,
    "flowers": flowers,
    "caltech101": caltech101,
    "birds": birds,
    "cifar": CifarRecords,
    "imagenet_v2": imagenet_v2,
    "imagenet_real": imagenet_real,
    "objectnet": objectnet,
}


def _several(right: list[list[int]], uri: str) -> NDArray[np.uint8]:
    labels = np.zeros((len(right), IMAGENET_CLASSES), dtype=np.uint8)
    for k, classes in enumerate(right):
        if any(not 0 <= c < IMAGENET_CLASSES for c in classes):
            raise DataError(f"{uri}: label {max(classes)}, but {IMAGENET_CLASSES} classes")
        labels[k, classes] = 1
    return labels


def _imagenet_names() -> tuple[str, ...]:
    return tuple(str(k) for k in range(IMAGENET_CLASSES))


def _test_only(uri: str, part: Part) -> str:
    if part != "test":
        raise DataError(
            f"{uri} is a test set and has no training images: judge a classifier on it with protocol `head`"
        )
    return uri


def _lines(path: Path, uri: str) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{uri}: {path} cannot be read ({error.strerror})") from error


def _without_border(encoded: bytes, border: int) -> bytes:
    pixels = decode_whole(encoded, read_header(encoded))
    if min(pixels.shape[:2]) <= 2 * border:
        raise DamagedImage("nothing but border")
    return _bmp(Image.fromarray(np.ascontiguousarray(pixels[border:-border, border:-border])))


def _bmp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="BMP")
    return buffer.getvalue()
