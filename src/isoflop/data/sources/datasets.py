"""Data sets of libraries: `torchvision:CIFAR10`, `hf:NAME`, and objects with `__len__` and `__getitem__`."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from isoflop.data.decode import DamagedImage
from isoflop.data.order import derive_key
from isoflop.data.records import Labels, Note, Part, number_names
from isoflop.data.sources.parquet import ParquetRecords
from isoflop.errors import DataError, did_you_mean
from isoflop.runs.files import cache_directory


class DatasetRecords:
    """A map-style data set of (picture, label) pairs; pictures are PIL images, and are handed on uncompressed.

    The labels are read once, at the start, from an attribute `targets` or `labels` if there is one.
    """

    shard_sizes: NDArray[np.int64] | None = None
    notes: tuple[Note, ...] = ()

    def __init__(self, dataset: Any, *, uri: str, class_names: tuple[str, ...] = ()) -> None:
        self.uri = uri
        self._dataset = dataset
        labels = next(
            (getattr(dataset, name) for name in ("targets", "labels", "_labels") if hasattr(dataset, name)), None
        )
        if labels is None:
            labels = [dataset[k][1] for k in range(len(dataset))]
        self.labels: Labels = np.asarray(labels, dtype=np.int64)
        names = class_names or tuple(map(str, getattr(dataset, "classes", ())))
        self.class_names = names or number_names(int(self.labels.max()), uri)
        some = np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)
        self.fingerprint = f"{derive_key(uri, len(self), self.labels.tobytes().hex(), *map(self._hash, some)):016x}"
        if hasattr(data := getattr(dataset, "data", None), "dtype"):  # all images, in one array
            pixels = np.asarray(data)
            digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
            self.fingerprint += f"-{digest.hexdigest()}"  # see `fingerprint_files`

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        try:
            picture = self._dataset[int(index)][0]
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever the decoder of the data set raises
            raise DamagedImage(f"damaged image: {error or type(error).__name__}") from error
        if not isinstance(picture, Image.Image):
            raise DamagedImage(f"not a PIL image but {type(picture).__name__}")
        buffer = io.BytesIO()
        ImageOps.exif_transpose(picture).save(buffer, format="TIFF")
        return buffer.getvalue()

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return f"{self.uri} item {index}"

    def _hash(self, index: int) -> int:
        return derive_key(self.read(index).hex())


def torchvision_records(name: str, part: Part, *, root: str | None = None) -> DatasetRecords:
    """A classification data set of torchvision by the name of its class, in any case; downloaded if it is not there."""
    from torchvision import datasets

    classes = {attribute.lower(): attribute for attribute in datasets.__all__}
    if name.lower() not in classes:
        meant = did_you_mean(name.lower(), classes, written=lambda lower: f"torchvision:{classes[lower]}")
        raise DataError(f"torchvision has no data set `{name}`{meant}")
    make: Callable[..., Any] = getattr(datasets, classes[name.lower()])
    place = root or str(cache_directory() / "torchvision")
    # Some data sets take `train`, the others `split`; both kinds are opened by trying.
    choices: list[dict[str, Any]] = [{"train": part == "train"}, {"split": part}]
    for choice in choices:
        try:
            return DatasetRecords(make(root=place, download=True, **choice), uri=f"torchvision:{name}")
        except TypeError:
            continue
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"torchvision:{name}: not in {place} and cannot be downloaded ({reason})") from error
    raise DataError(f"torchvision:{name} is not a classification data set with a training and a test part")


def hugging_face_records(name: str, part: Part, **columns: str) -> ParquetRecords:
    """The Parquet files of a data set on the Hugging Face Hub (from the local cache if they are there).

    `columns` are the options of `ParquetRecords`.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet"])
    except Exception as error:  # the hub raises many kinds; all mean that the data cannot be had
        raise DataError(
            f"hf:{name}: cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    try:
        records = ParquetRecords(Path(folder), part, **columns)
    except DataError as error:  # options belong to the name that was given, not to the folder
        raise DataError(str(error).replace(f"parquet:{folder}", f"hf:{name}")) from error
    records.uri = f"hf:{name}"
    return records
