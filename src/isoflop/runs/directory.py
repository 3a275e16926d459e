"""The directory of a run: its identity, its status and its published files.

`identity.json` is written first, in one step, and claims the directory for the run. `config.json`, `env.json` and
`data.json` describe the run; training does not need them, and writes missing or damaged ones again. `status.json` is
replaced at every checkpoint, and synced when the run ends; it then has the SHA-256 of every published file.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from isoflop.errors import CheckpointError
from isoflop.runs.files import read_json, sha256_of, write_json

WEIGHTS = "model.safetensors"
STATES = ("running", "preempted", "done", "diverged")


@dataclass(frozen=True)
class RunIdentity:
    """What must not change between the attempts at a run.

    `run` is the hash of the configuration, `config` that without the places where data lie: data that have moved are
    the same. `data` is their fingerprint, `order` the name of the order of samples.
    """

    run: str
    samples: int
    data: str
    order: str
    config: str = ""  # of runs of earlier versions, empty

    @property
    def names(self) -> tuple[str, str]:
        """12 hexadecimal digits that are of this run on these data alone, for its folder where runs share one; and
        those that earlier versions gave it."""
        old = {"run": self.run, "samples": self.samples, "data": self.data, "order": self.order}
        new = {**old, "run": self.config or self.run}
        digests = [hashlib.sha256(json.dumps(it, sort_keys=True).encode()).hexdigest()[:12] for it in (new, old)]
        return digests[0], digests[1]


def read_identity(directory: Path) -> RunIdentity | None:
    """Whose `directory` is; None where nobody has claimed it, CheckpointError where that is damaged."""
    path = directory / "identity.json"
    if not path.exists():
        return None
    kinds = {"run": str, "samples": int, "data": str, "order": str}
    found = read_json(path, kinds)
    return RunIdentity(**{name: found[name] for name in kinds}, config=str(found.get("config", "")))


def claim(
    directory: Path,
    identity: RunIdentity,
    files: Mapping[str, Any],
    hash_of: Callable[[dict[str, Any]], str],
    is_fingerprint_of: Callable[[str, str], bool] = str.__eq__,
) -> RunIdentity:
    """Makes `directory` that of `identity`, and returns what is written there; for the directory's sole writer.

    Args:
        files: the JSON files that describe the run, `config.json` and `data.json` among them, by name.
        hash_of: of what a `config.json` says, the hash that `Identity.config` is; "" where that makes no sense.
        is_fingerprint_of: whether the first, which may be of an earlier version, is that of data with the second.

    Raises CheckpointError when it is another run's, has been made from other data, or holds something else.
    """
    found = _found(directory, identity, files, hash_of, is_fingerprint_of)
    try:
        if found is None:
            write_json(directory / "identity.json", asdict(identity))
        _describe(directory, files, is_new=found is None, has_moved=found is not None and found.run != identity.run)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot write here: {error.strerror}") from error
    return found or identity


def _found(
    directory: Path,
    identity: RunIdentity,
    files: Mapping[str, Any],
    hash_of: Callable[[dict[str, Any]], str],
    is_fingerprint_of: Callable[[str, str], bool],
) -> RunIdentity | None:
    """The identity of `directory` where it is the same run as `identity`; None where it is to be claimed."""

    def config_there() -> str:
        try:
            return hash_of(read_json(directory / "config.json"))
        except CheckpointError:
            return ""

    try:
        found = read_identity(directory)
    except CheckpointError as error:
        if config_there() != identity.config or not is_fingerprint_of(_fingerprint(directory), identity.data):
            raise
        warnings.warn(f"{error}; it is written again: config.json and data.json are of this run", stacklevel=2)
        return None
    if found is None:
        strangers = sorted(p.name for p in directory.iterdir() if not p.name.startswith(".") and p.name not in files)
        if strangers:
            raise CheckpointError(
                f"{directory}: not empty and not a run (it holds {strangers[0]}); choose another folder"
            )
        if config_there() not in ("", identity.config):
            raise CheckpointError(f"{directory}: belongs to another run; choose another folder or delete this one")
        return None
    if found.run != identity.run and (found.config or config_there()) != identity.config:
        raise CheckpointError(
            f"{directory}: belongs to another run ({found.run}, this one is {identity.run}); "
            "choose another folder or delete this one"
        )
    is_same = is_fingerprint_of(found.data, identity.data)
    if not is_same or (found.samples, found.order) != (identity.samples, identity.order):
        raise CheckpointError(
            f"{directory}: the data have changed since the run started "
            f"({found.samples} samples, fingerprint {found.data}; now {identity.samples}, {identity.data})"
        )
    return found


def _fingerprint(directory: Path) -> str:
    try:
        return str(read_json(directory / "data.json")["fingerprint"])
    except (CheckpointError, KeyError):
        return ""


def _describe(directory: Path, files: Mapping[str, Any], *, is_new: bool, has_moved: bool) -> None:
    """Writes those of `files` that are not there or not readable; all of them where the run is new, and those that
    say where the data lie where these have moved."""
    for name, value in files.items():
        path = directory / name
        if not is_new and not (has_moved and name in ("config.json", "data.json")):
            try:
                read_json(path)
                continue
            except CheckpointError as error:
                warnings.warn(f"{error}; it is written again", stacklevel=2)
        write_json(path, value)


FOUND = ("heldout_loss", "heldout_accuracy", "probe_accuracy", "rankme")
"""What the last evaluation of a run finds, each where there is such a thing"""


@dataclass(frozen=True)
class Status:
    """How far a run is, and how it has ended: "done", "diverged" or "preempted" (it goes on when started again);
    "running" before. What there is none of is None, as is a loss that is not finite."""

    state: str
    step: int
    steps: int
    seconds: float
    heldout_loss: float | None = None
    heldout_accuracy: float | None = None
    probe_accuracy: float | None = None
    rankme: float | None = None
    error: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each published file by its name; empty for runs of earlier versions."""
    best_step: int | None = None
    """The step whose weights are published, where that is not the last (`evaluation.restore_best`)."""

    @property
    def is_over(self) -> bool:
        """Whether starting the run again would change nothing."""
        return self.state in ("done", "diverged")


def write_status(directory: Path, status: Status) -> None:
    """Replaces `status.json`; CheckpointError when the storage refuses."""
    gone: dict[str, Any] = {name: None for name in FOUND if not math.isfinite(getattr(status, name) or 0.0)}
    try:
        written = asdict(replace(status, **gone))
        write_json(directory / "status.json", written, synced=status.state != "running")
    except OSError as error:
        raise CheckpointError(f"{directory / 'status.json'}: cannot write: {error.strerror}") from error


def read_status(directory: Path) -> Status | None:
    """What `status.json` says, None before the run began; CheckpointError where it is damaged.

    What a later version adds is ignored. A run that an earlier version has stopped halfway goes on when started again.
    """
    path = directory / "status.json"
    if not path.exists():
        return None
    kinds: dict[str, Any] = {"state": str, "step": int}
    found = read_json(path, kinds)
    kinds |= {"steps": int, "seconds": float, "error": str, "files": dict, "best_step": int | None}
    kinds |= dict.fromkeys(FOUND, float | None)
    known = {name: found[name] for name in kinds if name in found}
    if "files" in known and known["files"] is None:
        del known["files"]
    read_json(path, {name: kinds[name] for name in known})
    if found["state"] == "stopped":
        known["state"] = found["state"] = "preempted"
    if found["state"] not in STATES:
        raise CheckpointError(f"{path}: not readable: a state of {found['state']!r}")
    if found["state"] == "done" and not math.isfinite(known.get("heldout_loss") or math.nan):
        raise CheckpointError(f"{path}: not readable: done, and no held-out loss")
    return Status(**{"steps": found["step"], "seconds": 0.0, **known})


def published(directory: Path, name: str = WEIGHTS) -> Path:
    """The file `name` that the run in `directory` has published; CheckpointError where it is missing, or is not what
    `status.json` says: damaged."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{directory}: not a finished run (no {name})")
    try:
        status = read_status(directory)
    except CheckpointError:  # what it says is not needed
        return path
    expected = status.files.get(name) if status else None
    try:
        if expected is None or sha256_of(path) == expected:
            return path
    except OSError as error:
        raise CheckpointError(f"{path}: not readable: {error.strerror}") from error
    raise CheckpointError(
        f"{path}: damaged: its SHA-256 is not that in status.json; started again, the run publishes it again"
    )
