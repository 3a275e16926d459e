"""One writer per directory, for as long as its process lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isoflop.errors import IsoflopError


@contextmanager
def sole_writer(directory: Path, error: type[IsoflopError]) -> Iterator[None]:
    """Holds `directory` for this process; `error` when another holds it or it cannot be written.

    The lock is the operating system's and dies with the process, so a killed writer never leaves one behind.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as reason:
        raise error(f"{directory}: cannot write here: {reason.strerror}; choose another output folder") from reason
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            raise error(f"{directory}: another isoflop process is writing here; wait for it or stop it") from reason
        yield
    finally:
        os.close(handle)
