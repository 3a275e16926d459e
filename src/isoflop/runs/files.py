"""Atomic, synced writes of files, and one reader of JSON.

A file is written under a private, hidden name in its folder, synced, and renamed over the old one, and the folder is
synced: after a kill or a power loss the content is the old or the new one. Several processes may write the same file at
once: each uses its own name, and the last rename counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from isoflop.errors import CheckpointError, IsoflopError, stand_in

LARGEST_JSON = 1 << 30  # bytes
PARTIAL = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.partial")  # what `private_path` makes


def private_path(path: Path) -> Path:
    """A hidden name beside `path` that no other process has: for what is to become `path`."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def replacing(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """A new, empty file to write to, which becomes `path` when the block ends, synced; after an error, nothing is left.

    For libraries that write by name. An OSError names `path`. What can be made again at no cost need not be `synced`:
    after a power loss it may be empty.
    """
    partial = private_path(path)
    try:
        try:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.close(handle)
            yield partial
            os.chmod(partial, mode)  # safetensors makes files that nobody else may read
            if synced:
                sync(partial)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        if synced:
            sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, content: bytes | str, *, synced: bool = True) -> None:
    """Replaces the file `path` by `content` (text as UTF-8) in one step, synced. Raises OSError, which names `path`."""
    with replacing(path, synced=synced) as partial:
        partial.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, synced: bool = True) -> None:
    """Replaces the JSON file `path` as `write_atomically` does."""
    write_atomically(path, to_json(value), synced=synced)


def to_json(value: Any) -> str:
    """`value` as the text of a JSON file."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def read_json(
    path: Path, fields: Mapping[str, type | UnionType] | None = None, *, error: type[IsoflopError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object in `path`, which has at least `fields`, of their types (`{"step": int, "loss": float | None}`).

    Raises `error`, in one line, where the file is missing, not readable, not JSON, not an object, or lacks a field. An
    integer passes for a float; True and False are no integers.
    """
    value = read_json_value(path, error=error)
    if not isinstance(value, dict):
        raise error(f"{path}: not readable: {_kind(value)} where an object is expected")
    for name, kind in (fields or {}).items():
        if name not in value:
            raise error(f"{path}: not readable: it lacks `{name}`")
        if not _is_a(value[name], kind):
            raise error(f"{path}: not readable: `{name}` is {_kind(value[name])}")
    return value


def read_json_value(path: Path, *, error: type[IsoflopError] = CheckpointError) -> Any:
    """Whatever JSON is in `path`. Raises `error`, in one line, where the file is missing, not readable or not JSON."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise error(f"{path}: not readable: not a file")
        if path.stat().st_size > LARGEST_JSON:
            raise error(f"{path}: not readable: {path.stat().st_size / 2**20:,.0f} MiB are no description")
        raw = path.read_bytes()
        if told := stand_in(raw[:64]):
            raise error(f"{path}: {told}")
        return json.loads(raw.decode("utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{path}: missing") from None
    except OSError as reason:
        raise error(f"{path}: not readable: {reason.strerror or reason}") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: not readable: not JSON, or damaged ({' '.join(str(reason).split())})") from reason


def _is_a(value: object, kind: type | UnionType) -> bool:
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kind) or (isinstance(value, int) and float in kinds)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Returns when the file or folder `path` has reached the disk. A folder that cannot be synced (FUSE, CIFS) is
    taken as it is."""
    is_folder = path.is_dir()
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)):
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Makes the folder `path` and those above it, each synced into its parent, so that a power loss takes none back."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def remove_partial_files(folder: Path, older_than: float = 0.0) -> None:
    """Removes what killed writers left in `folder`. For its sole writer; else with `older_than` (seconds), beyond
    which no writer is still at work."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if PARTIAL.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()


def cache_directory() -> Path:
    """Where caches go: $ISOFLOP_CACHE, else $XDG_CACHE_HOME/isoflop, else ~/.cache/isoflop.

    A user without a home, as in many containers, has them in the folder for temporary files.
    """
    if own := os.environ.get("ISOFLOP_CACHE"):
        return Path(os.path.expanduser(own))
    home = os.path.expanduser("~")
    if os.environ.get("XDG_CACHE_HOME") or home != "~":
        return Path(os.environ.get("XDG_CACHE_HOME") or Path(home) / ".cache") / "isoflop"
    return Path(tempfile.gettempdir()) / f"isoflop-{os.getuid()}"
