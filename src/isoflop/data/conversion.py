"""`isoflop data convert` and `isoflop data index`: copy images, byte for byte, to another layout; index tar shards."""

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from isoflop.data.decode import SUFFIXES, DamagedImage, read_header
from isoflop.data.inspection import Progress, guess_uri
from isoflop.data.opening import open_records, parse_uri
from isoflop.data.order import derive_key, permute
from isoflop.data.records import Damage, Part, Records, class_lines, read_surely
from isoflop.data.sources.shards import ShardRecords, list_shards
from isoflop.errors import DataError
from isoflop.escapes import printable
from isoflop.runs.files import replacing


class Conversion(NamedTuple):
    """What a conversion did."""

    images: int
    """images written"""
    left_out: list[Damage]
    """those that are no pictures"""


def convert(
    uri: str,
    destination: Path,
    *,
    to: Literal["shards", "folder"] = "shards",
    parts: tuple[Part, ...] = ("train", "test"),
    samples_per_shard: int = 10_000,
    shuffle: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes the images of `uri`, unchanged, as tar shards or as a folder of classes.

    With `shuffle` they are stored in an order drawn by chance, always the same: remote shards, of which a run holds a
    few at a time, should not be sorted by class. A part that the source does not have is left out, if there is another.
    Raises DataError if the destination has files already, if nothing can be read, or on a full or read-only disk; then
    nothing is left behind.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise DataError(f"{destination} is not empty; name a new folder")
    opened: dict[Part, Records] = {}
    for part in parts:
        try:
            opened[part] = open_records(guess_uri(uri), part)
        except DataError:
            if part == parts[-1] and not opened:
                raise
    total, done, left_out = sum(map(len, opened.values())), 0, list[Damage]()
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for part, records in opened.items():
            if to == "shards":
                _write_class_names(destination, records)
            order = np.arange(len(records), dtype=np.int64)
            if shuffle:
                order = permute(order, len(records), derive_key("conversion", part))
            for start in range(0, len(records), samples_per_shard):
                some = range(start, min(start + samples_per_shard, len(records)))
                samples = _sound(records, zip(some, order[start : some.stop].tolist(), strict=True), left_out)
                if to == "shards":
                    _write_shard(destination / f"{part}-{start // samples_per_shard:06d}.tar", samples)
                else:
                    _write_files(destination / part, records, samples)
                done += len(some)
                if progress:
                    progress(done, total)
        if len(left_out) == total:
            raise DataError(f"{uri}: none of the {total} images can be read; the first: {left_out[0].reason}")
    except BaseException as error:
        for entry in destination.iterdir() if destination.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{destination}: {error.strerror or error}") from error
        raise
    return Conversion(total - len(left_out), left_out)


def index_shards(pattern: str, *, progress: Progress | None = None) -> tuple[int, int]:
    """Writes the index of tar shards beside them; the numbers of samples and of shards.

    `pattern` is as in `shards:PATTERN`, or a folder of shards, of which both parts are indexed. Raises DataError.
    """
    uri = guess_uri(pattern)
    if not uri.startswith("shards:"):
        raise DataError(f"{pattern}: an index is for tar shards, and there are none")
    path = parse_uri(uri)[1]
    opened = [ShardRecords(path, "train", progress=progress)]
    with contextlib.suppress(DataError):  # a list of shards has no test part
        list_shards(path, "test")
        opened.append(ShardRecords(path, "test", progress=progress))
    for records in opened:
        records.write_index()
    return sum(map(len, opened)), sum(records.num_shards for records in opened)


class _Sample(NamedTuple):
    """An encoded image on its way."""

    name: str
    """its number among those written"""
    suffix: str
    encoded: bytes
    label: Any
    """a class number, -1, or zeros and ones"""


def _sound(records: Records, places: Iterable[tuple[int, int]], left_out: list[Damage]) -> Iterator[_Sample]:
    """The samples at (new number, old number) that are pictures; the others are added to `left_out`."""
    for number, index in places:
        try:
            encoded = read_surely(records, index)
            suffix = SUFFIXES.get(read_header(encoded).format, SUFFIXES["JPEG"])[0]  # Pillow has a name for odd JPEGs
        except DamagedImage as error:
            left_out.append(Damage(index, records.name(index), str(error)))
            continue
        yield _Sample(f"{number:09d}", suffix, encoded, records.labels[index])


def _write_class_names(folder: Path, records: Records) -> None:
    if records.class_names:
        lines = class_lines(records.class_names, records.uri)
        (folder / "classes.txt").write_text(lines, encoding="utf-8")


def _write_shard(path: Path, samples: Iterable[_Sample]) -> None:
    """One tar file, the same bytes for the same records: no times and no owners."""
    with replacing(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            _add(tar, f"{sample.name}{sample.suffix}", sample.encoded)
            label = sample.label
            numbers = np.flatnonzero(label) if np.ndim(label) else [label] if label >= 0 else []
            if len(numbers):
                _add(tar, f"{sample.name}.cls", " ".join(str(int(n)) for n in numbers).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _write_files(folder: Path, records: Records, samples: Iterable[_Sample]) -> None:
    """Files named by their number, in a folder per class; numbered folders where names do not sort in class order."""
    if records.labels.ndim == 2:
        raise DataError("images with several classes do not fit a folder per class; convert to shards")
    names = [printable(name).replace("/", "_").strip(". ") or "class" for name in records.class_names]
    if sorted(set(names)) != names:
        names = [f"{number:05d} {name}" for number, name in enumerate(names)]
    for sample in samples:
        target = folder / names[int(sample.label)] if sample.label >= 0 else folder
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{sample.name}{sample.suffix}").write_bytes(sample.encoded)
