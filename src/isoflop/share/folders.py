"""A folder that is there as a whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from isoflop.errors import CheckpointError
from isoflop.runs.files import private_path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when all has gone well and is deleted when not.

    Raises CheckpointError where there is something at `target` already, or the storage refuses.
    """
    if target.exists():
        raise CheckpointError(f"{target}: there is something already; choose another --output or delete it")
    partial = private_path(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"{target}: cannot write here: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
