"""The encoded images in a column of Parquet files, by index, in bounded memory.

Parquet compresses whole groups of rows, so that a single image costs its group. The images are therefore copied once to
the cache, one after the other, with their places and CRC-32: any number of processes read them there by `pread`, about
10 µs each from the page cache, and hold none in memory. Where there is no space for the copy, groups of rows are read
when they are needed, and as many kept as fit a fixed amount of memory.
"""

import contextlib
import errno
import os
import shutil
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoflop.data.cache import cache_directory, kept, remove
from isoflop.data.decode import DamagedImage
from isoflop.data.keyed import derive_key
from isoflop.errors import DataError, stand_in

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
