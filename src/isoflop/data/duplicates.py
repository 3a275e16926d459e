"""Duplicates: images with the same pixels after decoding, independent of file name and encoding.

For stored data beyond 4 GB only bytes are compared, size and last 4 KiB first. The result is cached per data set.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from isoflop.data.cache import kept
from isoflop.data.decode import DECODING, DamagedImage, decode_whole, read_header
from isoflop.data.dense.objects import DenseRecords
from isoflop.data.records import Records, read_surely
from isoflop.errors import DataNotice
from isoflop.runs.files import cache_directory

Digests = NDArray[np.uint64]
"""(N,): equal for equal images; 0 for one that cannot be read"""

_MOST_DECODED = 4 << 30  # bytes, encoded; more would be decoded for minutes to hours
_SAID_FROM = 256 << 20  # bytes, from which it takes so long that it is said
_CHUNK = 256
_THREADS = 4
_LARGE = 16_000_000  # pixels, from which one picture is decoded at a time: it may take gigabytes
_ONE_LARGE = Lock()
_TAIL = 4096

_known: dict[str, Digests] = {}
"""of this process, where the cache cannot be written"""


def equal_images(records: Records | DenseRecords) -> NDArray[np.int64]:
    """(M, 2): the numbers of the images that equal another one, ascending, and for each the number of its group.

    None are looked for in remote shards, all of which would have to be fetched.
    """
    if getattr(records, "is_remote", False):
        return np.empty((0, 2), dtype=np.int64)
    some = np.linspace(0, len(records) - 1, min(64, len(records))).astype(int)
    size = sum(map(len, (_encoded(records, int(k)) or b"" for k in some))) * len(records) // max(1, len(some))
    return groups_of(digests_of(records, by_pixels=size <= _MOST_DECODED, size=size))


def groups_of(digests: Digests) -> NDArray[np.int64]:
    """The images whose digests are not unique, and their groups; see `equal_images`."""
    _, group, counts = np.unique(digests, return_inverse=True, return_counts=True)
    chosen = np.flatnonzero((counts[group] > 1) & (digests != 0))
    return np.stack([chosen, group[chosen]], axis=1)


def digests_of(records: Records | DenseRecords, *, by_pixels: bool, size: int = 0) -> Digests:
    """A digest of each image, from the cache if it is there. `size` is that of all images, in bytes, if known."""
    key = f"{records.fingerprint}-{f'pixels-v{DECODING}' if by_pixels else 'bytes'}"
    if key in _known:
        return _known[key]

    def make(folder: Path) -> None:
        np.save(folder / "digests.npy", _computed(records, by_pixels, size))

    def load(folder: Path) -> Digests | None:
        found: Digests = np.load(folder / "digests.npy", allow_pickle=False)
        return found if found.shape == (len(records),) and found.dtype == np.uint64 else None

    found = kept(cache_directory() / "duplicates" / key, load, make)
    _known[key] = _computed(records, by_pixels, size) if found is None else found
    return _known[key]


def pixel_digest(encoded: bytes) -> int:
    """Of the decoded pixels; of the bytes, where they are no picture."""
    try:
        header = read_header(encoded)
        with _ONE_LARGE if header.height * header.width > _LARGE else nullcontext():
            pixels = decode_whole(encoded, header)
            return _hash(repr(pixels.shape).encode(), np.ascontiguousarray(pixels).data)
    except DamagedImage:
        return _hash(encoded)


def _computed(records: Records | DenseRecords, by_pixels: bool, size: int) -> Digests:
    if size > _SAID_FROM:
        what = f"the {'pixels' if by_pixels else 'bytes'} of {len(records):,} images"
        told = f"{records.uri}: comparing {what} to find duplicates (once; stored in the cache)"
        warnings.warn(told, DataNotice, stacklevel=1)
    digests = np.zeros(len(records), dtype=np.uint64)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:  # decoders let go of the interpreter's lock
        for start in range(0, len(records), _CHUNK):
            numbers = range(start, min(start + _CHUNK, len(records)))
            if by_pixels:
                encoded = [_encoded(records, k) for k in numbers]
                found = pool.map(lambda one: 0 if one is None else pixel_digest(one), encoded)
            else:
                found = (_by_tail(records, k) for k in numbers)
            digests[start : numbers.stop] = list(found)
    if not by_pixels:  # the same size and end is not enough
        for k in groups_of(digests)[:, 0].tolist():
            digests[k] = _hash(_encoded(records, k) or b"")
    return digests


def _by_tail(records: Records | DenseRecords, index: int) -> int:
    if hasattr(records, "tail"):
        try:
            size, tail = records.tail(index, _TAIL)
        except OSError:
            return 0
        return _hash(str(size).encode(), tail)
    encoded = _encoded(records, index)
    return 0 if encoded is None else _hash(str(len(encoded)).encode(), encoded[-_TAIL:])


def _encoded(records: Records | DenseRecords, index: int) -> bytes | None:
    try:
        return read_surely(records, index)
    except DamagedImage:
        return None


def _hash(*content: bytes | memoryview) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in content:
        digest.update(part)
    return int.from_bytes(digest.digest()) or 1
