"""`parquet:PATH`: Parquet in the layout of Hugging Face datasets: a column of {bytes, path} structs and one of labels.

PATH is one file, or a folder with files named after their part: `train*.parquet`, `test*.parquet` or
`validation*.parquet`, at any depth, or any files in folders of these names. `config=FOLDER` selects one of several
configurations. The columns of images and labels are found by their metadata and usual names, or set by `image=COLUMN`
and `label=COLUMN`; guesses are noted. Without a column of labels the images are unlabelled; a column of lists is
multi-label.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoflop.config.load import nearest_path
from isoflop.data.cache import kept, remove
from isoflop.data.decode import DamagedImage
from isoflop.data.order import derive_key
from isoflop.data.records import (
    TEST_NAMES,
    Labels,
    Note,
    Part,
    as_in_training,
    check_labels,
    fingerprint_files,
    no_labels,
    number_names,
)
from isoflop.errors import DataError, stand_in
from isoflop.escapes import printable
from isoflop.runs.files import cache_directory

# The encoded images in a column of Parquet files, by index, in bounded memory.
#
# Parquet compresses whole groups of rows, so that a single image costs its group. The images are therefore copied once
# to
# the cache, one after the other, with their places and CRC-32: any number of processes read them there by `pread`,
# about
# 10 µs each from the page cache, and hold none in memory. Where there is no space for the copy, groups of rows are read
# when they are needed, and as many kept as fit a fixed amount of memory.


_IMAGES, _PLACES = "images.bin", "places.npy"
_ROWS = 256  # that are copied at a time
_BUFFER = 1 << 20  # bytes of a column that are read at a time
_MOST_HELD = 256 << 20  # bytes of row groups that a process keeps
_SHARE_OF_DISK = 0.9  # of the free space, that a copy may take


class ParquetImages:
    """The images in `column` of `files`, whose content `fingerprint` names."""

    def __init__(self, files: Sequence[Path], column: str, fingerprint: str) -> None:
        self._files, self._column = list(files), column
        self._entry = cache_directory() / "encoded" / f"{fingerprint}-{derive_key(column):016x}"
        self._groups: list[tuple[Path, int]] = []
        self._paths: dict[Path, str] = {}
        rows, self._size = [], 0
        for file in files:
            with reading(file), pq.ParquetFile(file) as opened:
                kind = opened.schema_arrow.field(column).type
                path = self._paths[file] = f"{column}.bytes" if pa.types.is_struct(kind) else column
                for number in range(opened.metadata.num_row_groups):
                    group = opened.metadata.row_group(number)
                    rows.append(group.num_rows)
                    self._groups.append((file, number))
                    chunks = (group.column(k) for k in range(group.num_columns))
                    self._size += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == path)
        self._ends: list[int] = np.cumsum(np.asarray(rows, dtype=np.int64)).tolist()
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._copy = self._opened()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None, "_held": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._copy = self._opened()

    def read(self, index: int) -> bytes:
        """One encoded image. Raises DamagedImage for a row without one, OSError where it cannot be read."""
        encoded = self._from_copy(index) if self._copy is not None else self._from_group(index)
        if encoded is None:
            raise DamagedImage("the row has no image")
        return encoded

    def _from_copy(self, index: int) -> bytes | None:
        """One image of the copy, which is made again from the source if it is damaged there."""
        for is_first in (True, False):
            try:
                return self._copy.read(index) if self._copy is not None else self._from_group(index)
            except _DamagedCopyError:
                if not is_first:  # else another process may have made it again already
                    remove(self._entry)
                self._copy = self._opened()
        try:
            return self._copy.read(index) if self._copy is not None else self._from_group(index)
        except _DamagedCopyError:  # it cannot be removed
            self._copy = None
            return self._from_group(index)

    def _opened(self) -> "_Copy | None":
        return kept(self._entry, lambda folder: _Copy.of(folder, len(self)), self._make, unchecked=(_IMAGES,))

    def _make(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if self._size > _SHARE_OF_DISK * free:
            raise OSError(
                errno.ENOSPC,
                f"a copy of the images, by which they can be read in any order, needs {self._size / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free",
            )
        places = np.zeros((len(self), 3), dtype=np.int64)
        at = 0
        with (folder / _IMAGES).open("wb", buffering=_BUFFER) as file:
            for index, encoded in enumerate(self._stream()):
                if encoded is None:
                    places[index] = (at, -1, 0)
                    continue
                file.write(encoded)
                places[index] = (at, len(encoded), zlib.crc32(encoded))
                at += len(encoded)
        np.save(folder / _PLACES, places)

    def _stream(self) -> Iterator[Any]:
        """All images in order, as buffers; None for a row without one."""
        for file in self._files:
            with reading(file), pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as opened:
                for batch in opened.iter_batches(batch_size=_ROWS, columns=[self._paths[file]], use_threads=False):
                    for value in _bytes_of(batch.column(0)):
                        yield value.as_buffer()

    def _from_group(self, index: int) -> bytes | None:
        number = bisect_right(self._ends, index)
        if number in self._held:
            self._held.move_to_end(number)
        else:
            file, group = self._groups[number]
            with reading(file), pq.ParquetFile(file, pre_buffer=False) as opened:
                table = opened.read_row_group(group, columns=[self._paths[file]], use_threads=False)
                self._held[number] = [_bytes_of(chunk) for chunk in table.column(0).chunks]
            while len(self._held) > 1 and sum(c.nbytes for held in self._held.values() for c in held) > _MOST_HELD:
                self._held.popitem(last=False)
        at = index - (self._ends[number - 1] if number else 0)
        for chunk in self._held[number]:
            if at < len(chunk):
                value = chunk[at].as_py()
                return None if value is None else bytes(value)
            at -= len(chunk)
        raise IndexError(index)


class _DamagedCopyError(Exception):
    """An image of the copy is not what was written."""


class _Copy:
    """Images one after the other in a file, and their places: offset, size (-1 for none) and CRC-32 (n, 3)."""

    def __init__(self, places: NDArray[np.int64], file: int) -> None:
        self._places, self._file = places, file

    @classmethod
    def of(cls, folder: Path, count: int) -> "_Copy | None":
        """The copy in this folder, if it has so many images."""
        places = np.asarray(np.load(folder / _PLACES, mmap_mode="r", allow_pickle=False))
        if places.shape != (count, 3) or places.dtype != np.int64:
            return None
        return cls(places, os.open(folder / _IMAGES, os.O_RDONLY | os.O_CLOEXEC))

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)

    def read(self, index: int) -> bytes | None:
        offset, size, crc = self._places[index].tolist()
        if size < 0:
            return None
        encoded = os.pread(self._file, size, offset)
        if len(encoded) != size or zlib.crc32(encoded) != crc:
            raise _DamagedCopyError
        return encoded


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns what pyarrow raises for `file` into one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        head = b""
        with contextlib.suppress(OSError), file.open("rb") as stream:
            head = stream.read(64)
        told = stand_in(head) or f"not readable as Parquet ({str(error).splitlines()[0]})"
        raise DataError(f"{file}: {told}") from error


def _bytes_of(chunk: Any) -> Any:
    return chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk


_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
_USUAL_LABELS = _LABEL_NAMES[:2]
_NUMBERED = re.compile(r"[-_.]?\d+(-of-\d+)?(-[0-9a-f]{8,})?$")  # the end of `train-00000-of-00002-0123456789abcdef`


class ParquetRecords:
    """The encoded images and labels of the Parquet files of one part of a data set."""

    shard_sizes: NDArray[np.int64] | None = None

    def __init__(
        self, path: Path, part: Part, *, image: str | None = None, label: str | None = None, config: str | None = None
    ) -> None:
        self.uri = f"parquet:{path}"
        files, beside = _files(path, part, config)
        columns = _choose(_schema(files[0]), files[0], self.uri, image, label)
        self.notes: tuple[Note, ...] = (*columns.notes, *beside)
        content = fingerprint_files(files)
        self._images = ParquetImages(files, columns.image, content)
        self.fingerprint = content
        if not columns.is_usual:  # of other images or labels than the same files give by themselves
            self.fingerprint = f"{derive_key(content, columns.image, columns.label or ''):016x}"
        self.class_names: tuple[str, ...] = ()
        self.labels: Labels = no_labels(len(self._images))
        if columns.label is None:
            return
        self.labels, self.class_names = _labels(files, columns.label, columns.names, self.uri)
        if part == "test" and (training := _training_classes(path, columns.label, config)):
            by_number = bool(columns.names) or training.are_listed
            labels = as_in_training(self.labels, self.class_names, training.names, self.uri, by_number=by_number)
            self.class_names = training.names
            if labels is not self.labels:
                self.labels = labels
                self.fingerprint = f"{derive_key(self.fingerprint, *self.class_names):016x}"  # of other labels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        return self._images.read(int(index))

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return f"{self.uri} row {index}"


def _files(path: Path, part: Part, config: str | None) -> tuple[list[Path], tuple[Note, ...]]:
    """The files of a part, in order, and what lies beside them and is not used."""
    if path.is_file():
        if part == "test":
            raise DataError(
                f"parquet:{path} is one file, which has no test part; name its folder instead", missing_part=True
            )
        return [path], ()
    if not path.is_dir():
        raise DataError(f"parquet:{path}: no such file or folder{nearest_path(path)}")
    root = path / config if config else path
    if not root.is_dir() or (config and not root.resolve().is_relative_to(path.resolve())):
        raise DataError(f"parquet:{path}: no folder `{printable(str(config))}` in it")
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(root.rglob("*.parquet")):
        if not any(name.startswith(".") for name in file.relative_to(root).parts):
            folder, split = _place(file.relative_to(root))
            found[folder][split].append(file)
    for name in ("train",) if part == "train" else TEST_NAMES:
        folders = sorted(folder for folder in found if any(split.startswith(name) for split in found[folder]))
        if len(folders) > 1 and part == "test":  # the one that the training part has, too
            trained = [f for f in found if any(split.startswith("train") for split in found[f])]
            folders = trained if len(trained) == 1 and trained[0] in folders else folders
        if len(folders) > 1:
            listed = ", ".join(printable(folder) for folder in folders[:8]) + (", …" if len(folders) > 8 else "")
            raise DataError(
                f"parquet:{path}: {name} files of {len(folders)} configurations ({listed}); name one, as in "
                f"parquet:{path}?config={printable(folders[0] if folders[0] != '.' else folders[1])}"
            )
        if folders:
            return _of_one_split(found[folders[0]], name, path)
    names = "train*.parquet" if part == "train" else "test*.parquet or validation*.parquet"
    raise DataError(f"parquet:{path}: no {names} in this folder", missing_part=True)


def _place(file: Path) -> tuple[str, str]:
    """The folder of a file's configuration, and the split that the file, or else the folder that it is in, names."""
    split, folder = _NUMBERED.sub("", file.stem), file.parent
    splits = ("train", *TEST_NAMES)
    if not split.startswith(splits):
        split = folder.name
    return str(folder.parent if folder.name in splits and split.startswith(folder.name) else folder), split


def _of_one_split(splits: dict[str, list[Path]], name: str, path: Path) -> tuple[list[Path], tuple[Note, ...]]:
    """The files of the split called `name`, or of the only one that begins so."""
    alike = sorted(split for split in splits if split.startswith(name))
    if name not in alike and len(alike) > 1:
        raise DataError(f"parquet:{path}: which files are the {name} part, {', '.join(map(printable, alike))}?")
    chosen = name if name in alike else alike[0]
    others = tuple(file.name for split in alike if split != chosen for file in splits[split])
    return splits[chosen], (Note(f"files beside `{chosen}`", others, len(others)),) if others else ()


def _schema(file: Path) -> Any:
    with reading(file):
        return pq.read_schema(file)


class _Columns(NamedTuple):
    image: str
    label: str | None
    names: tuple[str, ...]
    """of the classes, where the metadata list them"""
    notes: tuple[Note, ...]
    is_usual: bool
    """whether they are the first column of images and the first of the usual names for labels, if any"""


def _choose(schema: Any, file: Path, where: str, image: str | None, label: str | None) -> _Columns:
    """The columns of images and labels: those that are named, else those that must be meant. Raises DataError."""
    features = _features(schema)
    for column, option in ((image, "image"), (label, "label")):
        if column is not None and column not in schema.names:
            known = ", ".join(map(printable, schema.names))
            raise DataError(f"{file}: no column `{printable(column)}` for `{option}`; the columns are {known}")
    pictures = [field.name for field in schema if _holds_images(field.type)]
    if not pictures:
        known = ", ".join(map(printable, schema.names))
        raise DataError(f"{file}: no column of encoded images; the columns are {known}")
    if image is not None and image not in pictures:
        kind = schema.field(image).type
        raise DataError(f"{file}: the column `{printable(image)}` holds no encoded images, but {kind}")
    notes = []
    if (chosen := image) is None:
        declared = [name for name in pictures if _kind(features.get(name)) == "Image"]
        chosen = _one_of(declared or pictures, _IMAGE_NAMES, "image", where)
        if len(pictures) > 1 or chosen not in _IMAGE_NAMES:
            notes.append(Note(f"the column `{chosen}` is taken for the images"))
    usual = next((name for name in _LABEL_NAMES if name in schema.names), None)
    if label is None:
        declared = [name for name in schema.names if _kind(features.get(name)) == "ClassLabel"]
        likely = list(dict.fromkeys([*declared, *(name for name in _LABEL_NAMES if name in schema.names)]))
        label = _one_of(likely, _USUAL_LABELS, "label", where) if likely else None
        could = [field.name for field in schema if field.name not in pictures and _holds_labels(field.type)]
        if label is None and could:
            named = ", ".join(f"`{name}`" for name in could[:8])
            notes.append(Note(f"no column is called a label; label=COLUMN takes one ({named})"))
        elif label is not None and (len(likely) > 1 or label not in _USUAL_LABELS):
            notes.append(Note(f"the column `{label}` is taken for the classes"))
    names = _names(features.get(label)) if label else ()
    return _Columns(chosen, label, names, tuple(notes), chosen == pictures[0] and label == usual)


def _one_of(columns: list[str], usual: tuple[str, ...], option: str, where: str) -> str:
    """The only column, or the only one with a usual name."""
    named = columns if len(columns) == 1 else [name for name in columns if name.lower() in usual]
    if len(named) != 1:
        listed = ", ".join(f"`{printable(name)}`" for name in columns)
        example = f"{where}?{option}={printable(columns[0])}"
        raise DataError(f"{where}: {option}s could be {listed}; name one, as in {example}")
    return named[0]


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_labels(kind: Any) -> bool:
    if _is_list(kind):
        return bool(pa.types.is_integer(kind.value_type))
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _features(schema: Any) -> dict[str, Any]:
    """What the metadata of Hugging Face say of the columns; nothing where they are not what we know."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _inner(feature: Any) -> Any:
    """A feature itself, or that of which it is a list: {"_type": "Sequence", "feature": …} or [feature]."""
    while True:
        if isinstance(feature, list) and feature:
            feature = feature[0]
        elif isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        else:
            return feature


def _kind(feature: Any) -> str:
    feature = _inner(feature)
    return str(feature.get("_type")) if isinstance(feature, dict) else ""


def _names(feature: Any) -> tuple[str, ...]:
    """The names of classes in a ClassLabel, or a list of them."""
    feature = _inner(feature)
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return ()
    return tuple(names)


class _Classes(NamedTuple):
    names: tuple[str, ...]
    are_listed: bool
    """in the metadata, not found among the labels"""


def _training_classes(path: Path, label: str, config: str | None) -> _Classes | None:
    """The classes of the training part, which number those of the test part; None where there is none or no labels."""
    try:
        files, _ = _files(path, "train", config)
    except DataError:
        return None
    schema = _schema(files[0])
    if label not in schema.names:
        return None
    listed = _names(_features(schema).get(label))
    where = f"parquet:{path}"
    return _Classes(listed or _labels(files, label, (), where)[1], are_listed=bool(listed))


def _column(files: list[Path], label: str, names: tuple[str, ...]) -> Any:
    """The labels in all files, as int64, text, or lists of int64, whatever integers and texts each file has."""
    parts: list[Any] = []
    for file in files:
        schema = _schema(file)
        if label not in schema.names:
            raise DataError(f"{file}: no column `{printable(label)}`, which {files[0].name} has")
        if (own := _names(_features(schema).get(label))) and names and own != names:
            raise DataError(f"{file}: lists other classes than {files[0].name}")
        with reading(file):
            column = pq.read_table(file, columns=[label]).column(label)
            kind = column.type
            if _is_text(kind):
                column = column.cast(pa.large_string())
            elif _is_list(kind) and pa.types.is_integer(kind.value_type):
                column = column.cast(pa.large_list(pa.int64()))
            elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
                column = column.cast(pa.int64())
        if parts and column.type != parts[0].type:
            other = f"{parts[0].type} in {files[0].name}"
            raise DataError(f"{file}: the column `{printable(label)}` is {kind}, but {other}")
        parts.append(column)
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)


def _labels(files: list[Path], label: str, names: tuple[str, ...], where: str) -> tuple[Labels, tuple[str, ...]]:
    column = _column(files, label, names)
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} samples have no label")
    if _is_list(column.type):
        lists = column.combine_chunks()
        if not pa.types.is_integer(column.type.value_type):
            raise DataError(f"{where}: a list of labels holds class numbers, not {column.type.value_type}")
        if lists.flatten().null_count:
            raise DataError(f"{where}: a list of labels has a place without a number")
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        names = names or number_names(int(values.max(initial=-1)), where)
        check_labels(values, len(names), where)
        several = np.zeros((len(lists), len(names)), dtype=np.uint8)
        several[np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy()), values] = 1
        return several, names
    if _is_text(column.type):
        words, numbers = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(words.tolist())
    if not pa.types.is_integer(column.type):
        raise DataError(f"{where}: labels are class numbers or names, not {column.type}")
    labels: NDArray[np.int64] = column.to_numpy()
    names = names or number_names(int(labels.max(initial=-1)), where)
    check_labels(labels, len(names), where)
    return labels, names
