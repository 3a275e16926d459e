"""The cache on disk, shared by processes: decoded and encoded images, indices, features, hashes.

An entry is a folder `KIND/KEY` with a manifest of the sizes and CRC-32 of its files. It is written under a private
name, synced and renamed, so it is complete or absent. If several processes write the same entry, the first one is kept
and the others use it. Damaged entries and entries of another format are computed again. The cache can be deleted at any
time.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from isoflop.errors import DataError
from isoflop.runs.files import cache_directory, private_path, read_json, sync, write_json

_FORMAT = 1
_MANIFEST = "manifest.json"
_CHUNK = 1 << 22  # bytes read at a time
_ATTEMPTS = 8  # at an entry that others replace meanwhile
_ABANDONED = 7 * 86_400.0  # seconds after which no writer is still at work
_CLOCK_TICK = 20_000_000  # ns: a change within the tick of another one leaves the same times
_REMEMBERED = 1 << 20  # bytes from which a file's hash is remembered

T = TypeVar("T")

_checked: dict[str, tuple[int, ...]] = {}
"""of files of entries, their `signature` when this process found them whole"""


def kept(
    entry: Path, load: Callable[[Path], T | None], make: Callable[[Path], None], *, unchecked: Iterable[str] = ()
) -> T | None:
    """What `load` reads from the folder `entry` of the cache, which `make` fills first if it is not there and whole.

    `load` gives None for an entry that does not fit: it is made again. `unchecked` are files whose content the reader
    checks by itself. The result is None, with a warning, where the cache cannot be written. Errors of `make` other than
    OSError pass.
    """
    if (found := opened(entry, load)) is not None:
        return found
    partial = private_path(entry)
    try:
        partial.mkdir(parents=True)
        remove_abandoned(entry.parent)
        make(partial)
        return publish(partial, entry, load, unchecked=unchecked)
    except OSError as error:
        tell_unwritable(error)
        return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def opened(entry: Path, load: Callable[[Path], T | None]) -> T | None:
    """What `load` reads from `entry`; None where it is absent, damaged, of another format, or does not fit."""
    for _ in range(_ATTEMPTS):
        if not is_whole(entry):
            return None
        try:
            return load(entry)
        except (FileNotFoundError, NotADirectoryError):  # replaced by another process meanwhile
            continue
        except (OSError, ValueError, EOFError, KeyError, TypeError):  # not what is written under this name
            return None
    return None


def publish(partial: Path, entry: Path, load: Callable[[Path], T | None], *, unchecked: Iterable[str] = ()) -> T | None:
    """Makes the folder `partial` the entry, or leaves it where another process was faster, and loads what is there.

    Raises OSError where that cannot be written.
    """
    seal(partial, unchecked)
    for _ in range(_ATTEMPTS):
        is_ours = False
        try:
            os.rename(partial, entry)
            is_ours = True
            sync(entry.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if (found := opened(entry, load)) is not None:
            return found
        remove(entry)
        if is_ours:  # it does not fit, whoever makes it
            return None
    raise OSError(errno.EIO, "an entry that others replace all the time", str(entry))


def seal(folder: Path, unchecked: Iterable[str] = ()) -> None:
    """Syncs the files in `folder` and writes their manifest."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name == _MANIFEST:  # of an earlier attempt
            continue
        sync(path)
        files[path.name] = {
            "size": path.stat().st_size,
            "crc32": None if path.name in unchecked else crc32_of(path),
        }
    write_json(folder / _MANIFEST, {"format": _FORMAT, "files": files})


def crc32_of(path: Path, size: int | None = None) -> int:
    """The CRC-32 of a file, or of its first `size` bytes."""
    crc, left = 0, size
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK if left is None else min(left, _CHUNK)):
            crc = zlib.crc32(chunk, crc)
            left = None if left is None else left - len(chunk)
    return crc


def is_whole(entry: Path) -> bool:
    """Whether the manifest is there and every file is what it says. What was found whole is not read again by this
    process until it changes.
    """
    try:
        manifest = read_json(entry / _MANIFEST, {"format": int, "files": dict}, error=DataError)
        if manifest["format"] != _FORMAT:
            return False
        for name, said in manifest["files"].items():
            path = entry / name
            found = signature(path)
            if found[0] != said["size"]:
                return False
            if said["crc32"] is None or _checked.get(str(path)) == found:
                continue
            if crc32_of(path) != said["crc32"]:
                return False
            _checked[str(path)] = found
    except (DataError, OSError, KeyError, TypeError):
        return False
    return True


def remove(entry: Path) -> None:
    """Removes an entry; others that read it keep what they have open."""
    aside = private_path(entry)
    with contextlib.suppress(OSError):
        os.rename(entry, aside)
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()


def remove_abandoned(folder: Path) -> None:
    """Removes what killed writers left unfinished in a folder of the cache a week ago."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.name.startswith(".") and time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def tell_unwritable(error: OSError) -> None:
    """Warns that something is not kept."""
    warnings.warn(
        f"the cache {cache_directory()} cannot be written ({error.strerror or error}), so what it would keep is made "
        "each time; set ISOFLOP_CACHE to a folder with space, or delete caches, which are made again when needed",
        stacklevel=3,
    )


def signature(path: Path | str) -> tuple[int, int, int, int]:
    """Size, times of content and of status in ns, and inode: what differs when a file was written or replaced.

    The time of the status is the kernel's; nobody can set it back. A change that came within the clock's tick of the
    one before would leave the same times, so a file that has just changed is waited for.
    """
    found = os.stat(path)
    age = time.time_ns() - found.st_ctime_ns
    if 0 <= age < _CLOCK_TICK:
        time.sleep((_CLOCK_TICK - age) / 1e9)
        found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def content_hash(path: Path) -> str:
    """The SHA-256 of a file. It is read once and remembered under its path and `signature`."""
    place = cache_directory() / "hashes" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    for _ in range(_ATTEMPTS):
        before = list(signature(path))
        if before[0] >= _REMEMBERED:
            with contextlib.suppress(DataError):
                known = read_json(place, {"signature": list, "sha256": str}, error=DataError)
                if known["signature"] == before:
                    return str(known["sha256"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if list(signature(path)) == before:
            break
    else:
        raise DataError(f"{path}: changes while it is read")
    if before[0] >= _REMEMBERED:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"signature": before, "sha256": digest})
    return digest
