"""`isoflop data convert` and `isoflop data index`: the same images, byte for byte, in another layout; and an index."""

import io
import os
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np

from isoflop.data.decode import DamagedImage, read_header
from isoflop.data.inspection import Progress, guess_uri
from isoflop.data.opening import open_records
from isoflop.data.records import Part, Records
from isoflop.data.sources.shards import ShardRecords
from isoflop.errors import DataError

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}


def convert(
    uri: str,
    destination: Path,
    *,
    to: Literal["shards", "folder"] = "shards",
    parts: tuple[Part, ...] = ("train", "test"),
    samples_per_shard: int = 10_000,
    progress: Progress | None = None,
) -> int:
    """Writes the images of `uri`, unchanged, as tar shards or as a folder of classes; returns how many there were.

    A part that the source does not have is left out, if there is another. Raises DataError if the destination has files
    already, if nothing can be read, or on a full or read-only disk. Shards appear one by one, each in one step.
    """
    if destination.exists() and any(destination.iterdir()):
        raise DataError(f"{destination} is not empty; name a new folder")
    opened: dict[Part, Records] = {}
    for part in parts:
        try:
            opened[part] = open_records(guess_uri(uri), part)
        except DataError:
            if part == parts[-1] and not opened:
                raise
    total, done = sum(map(len, opened.values())), 0
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for part, records in opened.items():
            if to == "shards":
                _write_class_names(destination, records)
            for start in range(0, len(records), samples_per_shard):
                indices = range(start, min(start + samples_per_shard, len(records)))
                if to == "shards":
                    _write_shard(destination / f"{part}-{start // samples_per_shard:06d}.tar", records, indices)
                else:
                    _write_files(destination / part, records, indices)
                done += len(indices)
                if progress:
                    progress(done, total)
    except OSError as error:
        raise DataError(f"{destination}: {error.strerror or error}") from error
    return total


def index_shards(pattern: str, *, progress: Progress | None = None) -> tuple[int, int]:
    """Writes the index of tar shards beside them; the numbers of samples and of shards.

    `pattern` is as in `shards:PATTERN`, or a folder of shards. Raises DataError.
    """
    uri = guess_uri(pattern)
    records = ShardRecords(uri.removeprefix("shards:"), "train", progress=progress)
    records.write_index()
    assert records.shard_sizes is not None
    return len(records), len(records.shard_sizes)


def _write_class_names(folder: Path, records: Records) -> None:
    if records.class_names:
        (folder / "classes.txt").write_text("\n".join(records.class_names) + "\n", encoding="utf-8")


def _write_shard(path: Path, records: Records, indices: range) -> None:
    """One tar file, the same bytes for the same records: no times and no owners."""
    part = path.with_suffix(".part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            encoded = records.read(index)
            _add(tar, f"{index:09d}.{_extension(encoded, records, index)}", encoded)
            label = records.labels[index]
            numbers = np.flatnonzero(label) if records.labels.ndim == 2 else [label] if label >= 0 else []
            if len(numbers):
                _add(tar, f"{index:09d}.cls", " ".join(str(int(n)) for n in numbers).encode())
    os.replace(part, path)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _write_files(folder: Path, records: Records, indices: range) -> None:
    """Files named by their number, in a folder per class; numbered folders where names do not sort in class order."""
    if records.labels.ndim == 2:
        raise DataError("images with several classes do not fit a folder per class; convert to shards")
    names = [name.replace("/", "_").strip(". ") or "class" for name in records.class_names]
    if sorted(set(names)) != names:
        names = [f"{number:05d} {name}" for number, name in enumerate(names)]
    for index in indices:
        encoded = records.read(index)
        label = int(records.labels[index])
        target = folder / names[label] if label >= 0 else folder
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{index:09d}.{_extension(encoded, records, index)}").write_bytes(encoded)


def _extension(encoded: bytes, records: Records, index: int) -> str:
    try:
        return _EXTENSIONS.get(read_header(encoded).format, "jpg")
    except DamagedImage as error:
        raise DataError(f"{records.name(index)}: {error}; remove or repair it before converting") from error
