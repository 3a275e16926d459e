"""`parquet:PATH`: Parquet in the layout of Hugging Face datasets: a column of {bytes, path} structs and one of labels.

PATH is one file, or a folder with files named after their part: `train*.parquet`, `test*.parquet` or
`validation*.parquet`, in the folder itself or below it. Without a column of labels the images are unlabelled; a column
of lists is multi-label.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoflop.config.nearest import nearest_path
from isoflop.data.decode import DamagedImage
from isoflop.data.keyed import derive_key
from isoflop.data.quarantine import Note
from isoflop.data.records import (
    TEST_NAMES,
    Labels,
    Part,
    as_in_training,
    check_labels,
    fingerprint_files,
    no_labels,
    number_names,
)
from isoflop.errors import DataError

_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


class ParquetRecords:
    """The encoded images and labels of the Parquet files of one part of a data set."""

    shard_sizes: NDArray[np.int64] | None = None
    notes: tuple[Note, ...] = ()

    def __init__(self, path: Path, part: Part) -> None:
        self.uri = f"parquet:{path}"
        files = _files(path, part)
        schema = _schema(files[0])
        image_column, label_column = _image_column(schema, files[0]), _label_column(schema)
        columns = [image_column] + ([label_column] if label_column else [])
        table = pa.concat_tables([_read(file, columns) for file in files])
        self._chunks = [_bytes_of(chunk) for chunk in table.column(image_column).chunks]
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks])
        self.class_names: tuple[str, ...] = ()
        self.labels: Labels = no_labels(table.num_rows)
        if label_column:
            names = _class_names(schema, label_column)
            self.labels, self.class_names = _labels(table.column(label_column), names, self.uri)
        self.fingerprint = fingerprint_files(files)
        if label_column and part == "test" and (training := _training_classes(path)):
            by_number = bool(names) or training.are_listed
            labels = as_in_training(self.labels, self.class_names, training.names, self.uri, by_number=by_number)
            self.class_names = training.names
            if labels is not self.labels:
                self.labels = labels
                self.fingerprint = f"{derive_key(self.fingerprint, *self.class_names):016x}"  # of other labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        images = self._chunks[chunk]
        encoded = images[int(index) - int(self._ends[chunk]) + len(images)].as_py()
        if encoded is None:
            raise DamagedImage("the row has no image")
        return bytes(encoded)

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return f"{self.uri} row {index}"


def _files(path: Path, part: Part) -> list[Path]:
    if path.is_file():
        if part == "test":
            raise DataError(f"parquet:{path} is one file, which has no test part; name its folder instead")
        return [path]
    if not path.is_dir():
        raise DataError(f"parquet:{path}: no such file or folder{nearest_path(path)}")
    for name in ("train",) if part == "train" else TEST_NAMES:
        if found := sorted(path.rglob(f"{name}*.parquet")):
            return found
    names = "train*.parquet" if part == "train" else "test*.parquet or validation*.parquet"
    raise DataError(f"parquet:{path}: no {names} in this folder")


def _schema(file: Path) -> Any:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def _read(file: Path, columns: list[str]) -> Any:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def _bytes_of(chunk: Any) -> Any:
    return chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk


def _image_column(schema: Any, file: Path) -> str:
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return str(field.name)
    raise DataError(f"{file}: no column of encoded images; the columns are {', '.join(schema.names)}")


def _label_column(schema: Any) -> str | None:
    for name in _LABEL_NAMES:
        if name in schema.names:
            return name
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    return str(integers[0]) if len(integers) == 1 else None


def _class_names(schema: Any, label_column: str) -> tuple[str, ...]:
    """The names in the metadata, where the feature may be a ClassLabel or a sequence of them."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(label_column, {}) if metadata else {}
    while isinstance(feature, list):
        feature = feature[0]
    return tuple(feature.get("names") or feature.get("feature", {}).get("names", ()))


class _Classes(NamedTuple):
    names: tuple[str, ...]
    are_listed: bool
    """in the metadata, not found among the labels"""


def _training_classes(path: Path) -> _Classes | None:
    """The classes of the training part, which number those of the test part; None where there is none or no labels."""
    try:
        files = _files(path, "train")
    except DataError:
        return None
    schema = _schema(files[0])
    if (column := _label_column(schema)) is None:
        return None
    listed = _class_names(schema, column)
    if listed:
        return _Classes(listed, are_listed=True)
    table = pa.concat_tables([_read(file, [column]) for file in files])
    return _Classes(_labels(table.column(column), (), f"parquet:{path}")[1], are_listed=False)


def _labels(column: Any, names: tuple[str, ...], where: str) -> tuple[Labels, tuple[str, ...]]:
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} samples have no label")
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = column.combine_chunks()
        if not pa.types.is_integer(column.type.value_type):
            raise DataError(f"{where}: a list of labels holds class numbers, not {column.type.value_type}")
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        names = names or number_names(int(values.max(initial=-1)), where)
        check_labels(values, len(names), where)
        several = np.zeros((len(lists), len(names)), dtype=np.uint8)
        several[np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy()), values] = 1
        return several, names
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        words, numbers = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(words.tolist())
    if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise DataError(f"{where}: labels are class numbers or names, not {column.type}")
    labels: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    names = names or number_names(int(labels.max(initial=-1)), where)
    check_labels(labels, len(names), where)
    return labels, names
