"""`parquet:PATH`: Parquet in the layout of Hugging Face datasets: a column of {bytes, path} structs and a column of
labels.

PATH is one file, or a folder with files named after their split: `train*.parquet`, `test*.parquet` or
`validation*.parquet`, in the folder itself or in its subfolder `data`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoflop.errors import DataError

_TEST_NAMES = ("test", "validation", "val")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


class ParquetRecords:
    """The encoded images and labels of the Parquet files of one part of a data set."""

    def __init__(self, path: Path, part: Literal["train", "test"]) -> None:
        self.uri = f"parquet:{path}"
        self._files = _files(path, part)
        tables = [_read(file) for file in self._files]
        schema = tables[0].schema
        image_column, label_column = _image_column(schema, self._files[0]), _label_column(schema, self._files[0])
        self.class_names = _class_names(schema, label_column)
        self._images = pa.concat_tables([t.select([image_column]) for t in tables]).column(0).combine_chunks()
        if isinstance(self._images, pa.ChunkedArray):
            raise DataError(f"{path}: more than 2 GB of images in Parquet; convert it to shards")
        if pa.types.is_struct(self._images.type):
            self._images = self._images.field("bytes")
        labels = pa.concat_tables([t.select([label_column]) for t in tables]).column(0)
        if labels.null_count:
            raise DataError(f"{path}: {labels.null_count} rows have no label in column `{label_column}`")
        self.labels: NDArray[np.int64] = labels.to_numpy().astype(np.int64)
        if not self.class_names:
            self.class_names = tuple(str(c) for c in range(int(self.labels.max()) + 1))
        _check_labels(self.labels, len(self.class_names), path)
        self.fingerprint = _content_hash(self._files)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        encoded = self._images[index].as_py()
        if encoded is None:
            raise ValueError("the row has no image")
        return bytes(encoded)

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return f"{self.uri} row {index}"


def _files(path: Path, part: str) -> list[Path]:
    if path.is_file():
        if part == "test":
            raise DataError(f"parquet:{path} is one file, which has no test split; name its folder instead")
        return [path]
    if not path.is_dir():
        raise DataError(f"parquet:{path}: no such file or folder")
    for name in ("train",) if part == "train" else _TEST_NAMES:
        if found := sorted([*path.glob(f"{name}*.parquet"), *path.glob(f"data/{name}*.parquet")]):
            return found
    names = "train*.parquet" if part == "train" else "test*.parquet or validation*.parquet"
    raise DataError(f"parquet:{path}: no {names} in this folder")


def _read(file: Path) -> Any:
    try:
        return pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not readable as Parquet ({error})") from error


def _image_column(schema: Any, file: Path) -> str:
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return str(field.name)
    raise DataError(f"{file}: no column of encoded images; the columns are {', '.join(schema.names)}")


def _label_column(schema: Any, file: Path) -> str:
    for name in _LABEL_NAMES:
        if name in schema.names:
            return name
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    if len(integers) == 1:
        return str(integers[0])
    raise DataError(f"{file}: no column named {', '.join(_LABEL_NAMES)}; the columns are {', '.join(schema.names)}")


def _class_names(schema: Any, label_column: str) -> tuple[str, ...]:
    metadata = (schema.metadata or {}).get(b"huggingface")
    if not metadata:
        return ()
    features = json.loads(metadata).get("info", {}).get("features", {})
    return tuple(features.get(label_column, {}).get("names", ()))


def _check_labels(labels: NDArray[np.int64], num_classes: int, path: Path) -> None:
    if len(labels) == 0:
        raise DataError(f"parquet:{path}: no rows")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"parquet:{path}: labels from {low} to {high}, but {num_classes} classes")


def _content_hash(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
