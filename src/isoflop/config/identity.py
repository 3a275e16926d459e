"""The hash of a configuration, which identifies a run."""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from isoflop.config.fields import Table
from isoflop.config.run import EARLIER, ModelConfig


def canonical_json(config: Table, *, places: bool = True) -> str:
    """The resolved configuration as JSON with sorted keys, without the fields that cannot change what is learned.

    Of trained weights that it names and that are there, it has the SHA-256 as well. Without `places` it does not say
    where the data lie: beside their fingerprint, two configurations that differ in that alone are the same.
    """
    return json.dumps(_identity(config, places), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def config_hash(config: Table, *, places: bool = True) -> str:
    """12 hexadecimal digits of the SHA-256 of `canonical_json`: a run's id.

    Left out are the cadence and number of checkpoints, evaluation batch size, output folder, workers, and device and
    CPU threads: these last two change rounding, and yet a run that was planned on one machine is the same on another.
    A teacher and what a run starts from count by their weights: with others under the same name, it is another run.
    """
    return hashlib.sha256(canonical_json(config, places=places).encode()).hexdigest()[:12]


def _identity(value: Any, places: bool) -> Any:
    if isinstance(value, Table):
        found = {name: _identity(extra, places) for name, extra in (value.model_extra or {}).items()}
        for name, field in type(value).model_fields.items():
            extra = field.json_schema_extra
            part = extra.get("in_hash") if isinstance(extra, dict) else None
            if name == "revision" and isinstance(value, ModelConfig) and not (value.is_revised and value.revision > 1):
                continue  # the same model in every revision, or the one that it was when nothing was said of it
            if name == "randaugment" and getattr(value, name) == EARLIER:
                continue  # as when the run was named
            if part is False or (part == "unless default" and getattr(value, name) == field.default):
                continue
            found[name] = _identity(getattr(value, name), places)
            if part == "place" and not places:
                found[name] = _without_path(str(getattr(value, name)))
            content = _content(getattr(value, name)) if part == "content" else None
            if content:
                found[f"{name} content"] = content
        if isinstance(value, ModelConfig) and value.code:
            found["code"] = {spec: code_digest(spec) for spec in value.code}
        return found
    if isinstance(value, dict):
        return {key: _identity(item, places) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_identity(item, places) for item in value]
    return value


def code_digest(spec: str) -> str | None:
    """The SHA-256 of the file that `FILE.py:NAME` names, None where there is none; that of the name of installed code,
    whose version is the environment's."""
    place = spec.rpartition(":")[0]
    return _content(place) if place.endswith(".py") else hashlib.sha256(spec.encode()).hexdigest()


def _without_path(uri: str) -> str:
    """What a source's URI says beside where the data lie: their kind, how they are shown, and their shares."""
    pieces = []
    for piece in re.split(r"\s+\+\s+", uri.strip()):
        head, mark, query = piece.partition("?")
        kind = re.match(r"(?:mixture:)?(?:[\d./]+\*)?\w*", head)
        options = "&".join(option for option in query.split("&") if not option.startswith(("root=", "cache_gb=")))
        pieces.append((kind[0] if kind else "") + mark + options)
    return " + ".join(pieces)


def _content(name: str | None) -> str | None:
    """The SHA-256 of the weights in the file or the finished run that `name` leads to; None where it leads nowhere."""
    if not name:
        return None
    try:
        path = Path(name).expanduser()
        path = path / "model.safetensors" if path.is_dir() else path
        if not path.is_file():
            return None
        found = path.stat()
        return _digest(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns)
    except (OSError, RuntimeError, ValueError):  # not readable, or no path at all
        return None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, inode: int, size: int, changed: int) -> str:
    """Of a file that has not changed since it was last asked for, the digest is not computed again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
