"""Whose a run's directory is, as its configuration and its data say, and on what machine the run is trained."""

from __future__ import annotations

import glob
import os
import platform
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from isoflop.config import RunConfig, config_hash, stored_run
from isoflop.data import Source, open_split
from isoflop.data.order import ALGORITHM
from isoflop.data.records import is_fingerprint_of
from isoflop.errors import CheckpointError, IsoflopError
from isoflop.runs.directory import Identity, claim, read_identity
from isoflop.runs.files import read_json
from isoflop.runs.journal import read_attempts
from isoflop.train.data_facts import FILE, facts_of


def identity_of(config: RunConfig, source: Source) -> Identity:
    """What must not change between the attempts at a run: configuration, number of samples, content and order."""
    without_places = config_hash(config, places=False)
    return Identity(config_hash(config), len(source), source.fingerprint, ALGORITHM, without_places)


def claim_run(config: RunConfig, directory: Path, source: Source) -> Identity:
    """Makes `directory` that of `config` on `source`; CheckpointError when it is another's already.

    A changed dataset would give the same positions other samples; one that has only been moved is the same.
    """
    files = {
        "config.json": config.model_dump(mode="json"),
        "env.json": environment(),
        FILE: asdict(facts_of(source)),
    }
    return claim(directory, identity_of(config, source), files, _hash_of, is_fingerprint_of)


def _hash_of(config: dict[str, Any]) -> str:
    try:
        return config_hash(stored_run(config), places=False)
    except IsoflopError:  # of another version
        return ""


def run_directory(parent: Path, name: str, config: RunConfig) -> Path:
    """The folder in `parent` for the run of `config`: `NAME-HASH`, or that of the same run which was begun when its
    data lay elsewhere."""
    own = parent / f"{name}-{config_hash(config)}"
    if own.exists():
        return own
    same = []
    for path in sorted(parent.glob(f"{glob.escape(name)}-*/identity.json")):
        with suppress(CheckpointError):  # damaged, or of something else
            found = read_identity(path.parent)
            without_places = found and (found.config or _hash_of(read_json(path.parent / "config.json")))
            if without_places == config_hash(config, places=False):
                same.append((path.parent, found))
    if not same:
        return own
    identity = identity_of(config, open_split(config.data, "train"))
    return next((path for path, found in same if found and is_fingerprint_of(found.data, identity.data)), own)


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


def warn_of_other_versions(directory: Path, now: Mapping[str, Any]) -> None:
    """Warns where the attempt before was under another version of isoflop or torch: the bits may differ from here."""
    before: Any = None
    for rows in read_attempts(directory, lambda file, line: None):
        before = next(rows, {}).get("environment", before)
    try:
        before = before or read_json(directory / "env.json")
    except CheckpointError:
        return
    if not isinstance(before, dict):
        return
    names = [name for name in ("isoflop", "torch") if before.get(name, now[name]) != now[name]]
    if changed := [f"{name} {now[name]} (before: {before[name]})" for name in names]:
        warnings.warn(
            f"{directory}: resumed under {' and '.join(changed)}: its numbers may differ from here on", stacklevel=2
        )
