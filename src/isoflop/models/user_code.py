"""Backbones and mixers of one's own: `path/to/file.py:Name`, or `package.module:Name` of what is installed.

Who names code in a configuration or on the command line runs it. What a run or a folder of weights names may be a
stranger's: it is run only if this user has run the same code before, which the cache remembers by its SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from isoflop.config.identity import code_digest
from isoflop.config.run import is_code
from isoflop.errors import CheckpointError, ModelError, did_you_mean
from isoflop.escapes import printable
from isoflop.runs.files import cache_directory, read_json


def load_code(spec: str) -> Callable[..., Any]:
    """The class or function that `FILE.py:NAME` or `PACKAGE.MODULE:NAME` says; ModelError, in a line, for none."""
    place, _, name = spec.rpartition(":")
    digest = code_digest(spec)
    if digest is None:
        raise ModelError(f"{spec}: there is no file {Path(place).expanduser()}")
    module = _module(place, digest)
    found = getattr(module, name, None)
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{spec}: {place} defines no {name}{did_you_mean(name, own)}")
    if not callable(found):
        raise ModelError(f"{spec}: is {type(found).__name__}, not a class or a function")
    with suppress(OSError):
        (folder := _remembered()).mkdir(parents=True, exist_ok=True)
        (folder / digest).touch()
    return found  # type: ignore[no-any-return]


@functools.cache
def _module(place: str, digest: str) -> ModuleType:
    """What `place` defines; executed once for each content of a file."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).expanduser().absolute()
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ModelError(f"{place}: changes while it is read")
        name = f"isoflop_user_code_{digest[:16]}"
        loaded = importlib.util.spec_from_file_location(name, path)
        assert loaded is not None
        module = sys.modules[name] = importlib.util.module_from_spec(loaded)
        exec(compile(content, str(path), "exec"), vars(module))
        return module
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{place}: cannot be loaded: {told(error, place)}") from error


def check_stored(specs: Iterable[str], where: Path) -> None:
    """Raises CheckpointError for code, named by what lies in the folder `where`, that this user has not run yet or that
    is no longer what a run was trained with."""
    for spec in filter(is_code, specs):
        digest = code_digest(spec)
        begun = _begun_with(where).get(spec, digest)
        if digest is None:
            raise CheckpointError(f"{where}: its model is the code {printable(spec)}, a file that is not there")
        if begun != digest:
            raise CheckpointError(f"{where}: {printable(spec)} has changed since this run was begun: put the file back")
        if not (_remembered() / digest).exists():
            raise CheckpointError(
                f"{where}: its model is the code {printable(spec)}, which was never run here: read it, and if you "
                f"trust it, run `isoflop models {printable(spec)}` first"
            )


def check_unchanged(specs: Iterable[str], directory: Path) -> None:
    """Raises CheckpointError where the run in `directory` was begun with other code under these names."""
    begun = _begun_with(directory)
    for spec in specs:
        if begun.get(spec, code_digest(spec)) != code_digest(spec):
            raise CheckpointError(
                f"{directory}: {spec} has changed since this run was begun: put the file back, or train elsewhere"
            )


def _begun_with(directory: Path) -> dict[str, Any]:
    with suppress(CheckpointError):
        found = read_json(directory / "env.json").get("code")
        return found if isinstance(found, dict) else {}
    return {}


def _remembered() -> Path:
    return cache_directory() / "code"


def told(error: Exception, spec: str) -> str:
    """One line on an error in code of the user's own: what, and where in the file."""
    name = Path(spec.rpartition(":")[0] or spec).name
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == name]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
