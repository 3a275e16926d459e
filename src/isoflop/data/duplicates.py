"""Duplicates: images with the same pixels after decoding, independent of file name and encoding; and near-duplicates.

For stored data beyond 4 GB only bytes are compared, size and last 4 KiB first. The result is cached per data set.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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

T = TypeVar("T")

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
    return groups_of(digests_of(records, "pixels" if size <= _MOST_DECODED else "bytes", size=size))


def groups_of(digests: Digests) -> NDArray[np.int64]:
    """The images whose digests are not unique, and their groups; see `equal_images`."""
    _, group, counts = np.unique(digests, return_inverse=True, return_counts=True)
    chosen = np.flatnonzero((counts[group] > 1) & (digests != 0))
    return np.stack([chosen, group[chosen]], axis=1)


def digests_of(
    records: Records | DenseRecords, of: Literal["pixels", "bytes", "look"] = "pixels", *, size: int = 0
) -> Digests:
    """A digest of each image, from the cache if it is there. `size` is that of all images, in bytes, if known."""
    key = f"{records.fingerprint}-{of if of == 'bytes' else f'{of}-v{DECODING}'}"
    if key in _known:
        return _known[key]

    def make(folder: Path) -> None:
        np.save(folder / "digests.npy", _computed(records, of, size))

    def load(folder: Path) -> Digests | None:
        found: Digests = np.load(folder / "digests.npy", allow_pickle=False)
        return found if found.shape == (len(records),) and found.dtype == np.uint64 else None

    found = kept(cache_directory() / "duplicates" / key, load, make)
    _known[key] = _computed(records, of, size) if found is None else found
    return _known[key]


def pixel_digest(encoded: bytes) -> int:
    """Of the decoded pixels; of the bytes, where they are no picture."""
    found = _of_pixels(encoded, _digest)
    return _hash(encoded) if found is None else found


def pixel_digests(encoded: bytes) -> tuple[int, int]:
    """`pixel_digest` and `look_of` of the same picture, which is decoded once."""
    found = _of_pixels(encoded, lambda pixels: (_digest(pixels), _look(_thumbnail(pixels))))
    return (_hash(encoded), 0) if found is None else found


def _digest(pixels: NDArray[np.uint8]) -> int:
    return _hash(repr(pixels.shape).encode(), np.ascontiguousarray(pixels).data)


def _of_pixels(encoded: bytes, measure: Callable[[NDArray[np.uint8]], T]) -> T | None:
    """None where the bytes are no picture."""
    try:
        header = read_header(encoded)
        with _ONE_LARGE if header.height * header.width > _LARGE else nullcontext():
            return measure(decode_whole(encoded, header))
    except DamagedImage:
        return None


def _computed(records: Records | DenseRecords, of: Literal["pixels", "bytes", "look"], size: int) -> Digests:
    if size > _SAID_FROM:
        what = f"the {of} of {len(records):,} images"
        told = f"{records.uri}: comparing {what} to find duplicates (once; stored in the cache)"
        warnings.warn(told, DataNotice, stacklevel=1)
    digests = np.zeros(len(records), dtype=np.uint64)
    hashed = pixel_digest if of == "pixels" else look_of
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:  # decoders let go of the interpreter's lock
        for start in range(0, len(records), _CHUNK):
            numbers = range(start, min(start + _CHUNK, len(records)))
            found: Iterable[int]
            if of == "bytes":
                found = (_by_tail(records, k) for k in numbers)
            else:
                encoded = [_encoded(records, k) for k in numbers]
                found = pool.map(lambda one: 0 if one is None else hashed(one), encoded)
            digests[start : numbers.stop] = list(found)
    if of == "bytes":  # the same size and end is not enough
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


# Near-duplicates: a picture and its copy that was encoded, resized or slightly cropped anew.
#
# Candidates are the nearest by a perceptual hash, within the usual 10 of 64 bits; they count if they correlate once the
# best crop of one is laid over the other. Of CIFAR-10 (docs/data.md) the hash alone is wrong about most.


_SIDE, _MARGIN = 32, 2  # of a thumbnail in pixels, and what is cut off each side of it for comparison
_BITS = 8  # frequencies down and across
_MOST_BITS_APART = 10  # as in imagededup; of pairs of random bits, 1 in 100 million
_CORRELATED = 0.9
_FLAT = 4.0  # grey levels: what varies less about a plane (a wall, a sky) tells noise
_MOST_PAIRS = 2_000_000_000  # compared: seconds
_MOST_CONFIRMED = 4000  # candidates, each of which is decoded again
_ROWS, _COLUMNS = 1024, 8192  # of hashes compared at a time

_FREQUENCY = np.cos(np.pi * np.outer(np.arange(_BITS), np.arange(_SIDE) + 0.5) / _SIDE)  # of the cosine transform
_PLANE = np.linalg.qr(
    np.stack([np.ones((_SIDE, _SIDE)), *np.indices((_SIDE, _SIDE))]).reshape(3, -1).T,
)[0]


class Alike(NamedTuple):
    """Pairs (M, 2) of the numbers of images that look the same; `told` says how far they were looked for, where not
    everywhere."""

    pairs: NDArray[np.int64]
    told: str


def look_of(encoded: bytes) -> int:
    """The perceptual hash (pHash) of a picture: 64 bits, of which its copies share most. 0 where it cannot be decoded,
    and for a flat one, whose bits would be noise."""
    return _of_pixels(encoded, lambda pixels: _look(_thumbnail(pixels))) or 0


def alike(
    records: Records | DenseRecords,
    looks: Digests,
    numbers: NDArray[np.int64],
    others: Records | DenseRecords | None = None,
    other_looks: Digests | None = None,
    other_numbers: NDArray[np.int64] | None = None,
) -> Alike:
    """For each image of `numbers` the one of the `others` that looks most like it, if it looks the same; without
    others, of those before it in `numbers`. Beyond 2 × 10⁹ pairs only images spread over `numbers` are compared."""
    numbers = numbers[looks[numbers] != 0]
    within = others is None or other_looks is None or other_numbers is None
    if others is None or other_looks is None or other_numbers is None:
        others, other_looks, other_numbers = records, looks, numbers
    other_numbers = other_numbers[other_looks[other_numbers] != 0]
    if not len(numbers) or not len(other_numbers):
        return Alike(np.empty((0, 2), dtype=np.int64), "")
    rows, told = np.arange(len(numbers)), []
    if len(rows) * len(other_numbers) > _MOST_PAIRS * (1 + within):
        rows = np.linspace(0, len(rows) - 1, max(1, _MOST_PAIRS // len(other_numbers))).astype(np.int64)
        told.append(f"of {len(rows):,} images compared")
    apart, nearest = _nearest(looks[numbers], other_looks[other_numbers], rows, within)
    found = np.flatnonzero(apart <= _MOST_BITS_APART)
    found = found[np.argsort(apart[found], kind="stable")]
    pairs = [
        (int(numbers[rows[k]]), int(other_numbers[nearest[k]]))
        for k in np.sort(found[:_MOST_CONFIRMED])
        if _is_copy(records, int(numbers[rows[k]]), others, int(other_numbers[nearest[k]]))
    ]
    if len(found) > _MOST_CONFIRMED:
        told.append(f"among the {_MOST_CONFIRMED:,} likeliest")
    return Alike(np.array(pairs, dtype=np.int64).reshape(-1, 2), ", ".join(told))


def _nearest(
    looks: Digests, others: Digests, rows: NDArray[np.int64], within: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of each of the `rows` of looks the bits that differ from the nearest other, and the number of that; `within` the
    looks themselves, only of those before it."""
    apart, nearest = np.full(len(rows), np.inf, np.float32), np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), _ROWS):
        own = rows[start : start + _ROWS]
        here, at, signs = apart[start : start + _ROWS], nearest[start : start + _ROWS], _signs(looks[own])
        for first in range(0, int(own[-1]) if within else len(others), _COLUMNS):
            distance = (64 - signs @ _signs(others[first : first + _COLUMNS]).T) / 2
            if within:
                distance[own[:, None] <= first + np.arange(distance.shape[1])] = np.inf
            best = distance.argmin(axis=1)
            least = distance[np.arange(len(own)), best]
            at[:] = np.where(least < here, first + best, at)
            here[:] = np.minimum(least, here)
    return apart, nearest


def _signs(looks: Digests) -> NDArray[np.float32]:
    """(N, 64), 1 or −1: their product counts the bits that agree, less those that differ."""
    bits = np.unpackbits(np.ascontiguousarray(looks).view(np.uint8).reshape(-1, 8), axis=1)
    return np.asarray(bits * np.float32(2) - 1, dtype=np.float32)


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Grey levels (32, 32) of a picture (h, w, 3)."""
    small = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float64)


def _look(grey: NDArray[np.float64]) -> int:
    detail = grey.ravel() - _PLANE @ (grey.ravel() @ _PLANE)
    if np.sqrt(np.mean(detail**2)) < _FLAT:
        return 0
    found = (_FREQUENCY @ grey @ _FREQUENCY.T).ravel()
    bits = np.packbits(found > np.median(found[1:]))
    return int.from_bytes(bits.tobytes()) or 1


def _is_copy(records: Records | DenseRecords, one: int, others: Records | DenseRecords, other: int) -> bool:
    first = _of_pixels(_encoded(records, one) or b"", _thumbnail)
    second = _of_pixels(_encoded(others, other) or b"", _thumbnail)
    return first is not None and second is not None and _correlation(first, second) >= _CORRELATED


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of the inner part of `other` with that crop of `one` which fits it best: up to 4 of 32 pixels off each side."""
    views = np.einsum("iyr,rc,jxc->ijyx", _CROPS, one, _CROPS, optimize=True).reshape(len(_CROPS) ** 2, -1)
    inner = other[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].ravel()
    views, inner = views - views.mean(axis=1, keepdims=True), inner - inner.mean()
    size = np.linalg.norm(views, axis=1) * np.linalg.norm(inner)
    return float((views @ inner / np.maximum(size, 1e-9)).max())


def _crops() -> NDArray[np.float64]:
    """(9, 28, 32): matrices that resize a line of a thumbnail, without 0, 2 or 4 pixels at its ends, bilinearly."""
    side, found = _SIDE - 2 * _MARGIN, []
    for left, right in product((0, _MARGIN, 2 * _MARGIN), repeat=2):
        centres = left + (np.arange(side) + 0.5) * (_SIDE - left - right) / side - 0.5
        found.append(np.maximum(0.0, 1 - np.abs(centres.clip(0, _SIDE - 1)[:, None] - np.arange(_SIDE))))
    return np.array(found)


_CROPS = _crops()
