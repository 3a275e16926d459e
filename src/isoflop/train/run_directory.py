"""What a run's directory says about itself: whose it is, on what it ran, how far it has come."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from isoflop.config import RunConfig, config_hash
from isoflop.data import Source
from isoflop.data.order import ALGORITHM
from isoflop.data.records import is_fingerprint_of
from isoflop.errors import CheckpointError
from isoflop.runs.files import write_json
from isoflop.train.data_facts import write_facts


def identity_of(config: RunConfig, source: Source) -> dict[str, Any]:
    """What must not change between the attempts at a run: configuration, number of samples, content and order."""
    return {"run": config_hash(config), "samples": len(source), "data": source.fingerprint, "order": ALGORITHM}


def name_of(config: RunConfig, source: Source) -> str:
    """12 hexadecimal digits that are of this run on these data alone: its folder where runs share one."""
    return hashlib.sha256(json.dumps(identity_of(config, source), sort_keys=True).encode()).hexdigest()[:12]


def claim(config: RunConfig, directory: Path, source: Source) -> None:
    """Makes `directory` that of `config` on `source`; CheckpointError when it is another's already.

    What must not change between attempts is written once: the configuration, the number of samples and the
    fingerprint of the data. A changed dataset would give the same positions other samples.
    """
    identity = identity_of(config, source)
    path = directory / "identity.json"
    if path.exists():
        found = _read_object(path, "run", "samples", "data")
        if found["run"] != identity["run"]:
            raise CheckpointError(
                f"{directory}: belongs to another run ({found['run']}, this one is {identity['run']}); "
                "choose another folder or delete this one"
            )
        is_same = is_fingerprint_of(str(found["data"]), identity["data"])
        if not is_same or found != {**identity, "data": found["data"]}:
            raise CheckpointError(
                f"{directory}: the data have changed since the run began "
                f"({found['samples']} samples, fingerprint {found['data']}; "
                f"now {identity['samples']}, {identity['data']})"
            )
        return
    strangers = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
    if strangers:
        raise CheckpointError(f"{directory}: not empty and not a run (it holds {strangers[0]}); choose another folder")
    try:
        write_json(directory / "config.json", config.model_dump(mode="json"))
        write_json(directory / "env.json", environment())
        write_facts(directory, source)
        write_json(path, identity)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot write here: {error.strerror}") from error


def environment() -> dict[str, Any]:
    """The machine and versions that this process runs on: what bit-identity depends on beside the configuration."""
    import isoflop

    return {
        "isoflop": isoflop.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def write_status(directory: Path, status: dict[str, Any]) -> None:
    """Replaces `status.json`; CheckpointError when the storage refuses."""
    try:
        write_json(directory / "status.json", status)
    except OSError as error:
        raise CheckpointError(f"{directory / 'status.json'}: cannot write: {error.strerror}") from error


def read_status(directory: Path) -> dict[str, Any]:
    """What `status.json` says, or {} before the run began; CheckpointError where it is damaged. NaN travels as null."""
    try:
        return _read_object(directory / "status.json", "state", "step")
    except FileNotFoundError:
        return {}


def _read_object(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file of ours, with `keys`; CheckpointError where it is none, FileNotFoundError as usual."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error
    if not (isinstance(found, dict) and all(key in found for key in keys)):
        raise CheckpointError(f"{path}: not readable: not the object that was written")
    return found
