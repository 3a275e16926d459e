"""Checkpoints that are whole or absent: safetensors and JSON, a SHA-256 manifest, and an atomic rename.

A checkpoint is a directory `step-000000123/` with one or more files of tensors, `state.json` and `manifest.json`. It is
written under a hidden name, synced to the disk, and renamed: a kill at any moment leaves either the old set or the new.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.errors import CheckpointError
from isoflop.runs.files import read_json, sha256_of, sync

FORMAT = 2
WHOLE = "tensors.safetensors"  # what one process wrote; several write `shard-*.safetensors` (train/sharded.py)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: named tensors, and JSON-able `state` (`state["step"]` is the number of steps consumed)."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies in `folder`."""
    return folder / f"step-{step:012d}"


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, newest first, verified or not."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name[5:]) for p in folder.iterdir() if p.name.startswith("step-")), reverse=True)


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int | None = None) -> Path:
    """Writes a checkpoint for `state["step"]` and drops all but the `keep` newest; returns its path.

    Raises CheckpointError when the storage refuses (full, read-only); what was there before is then untouched.
    """
    final = checkpoint_path(folder, int(state["step"]))
    partial = partial_path(folder, final.name, os.getpid())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, partial / WHOLE)
        commit(partial, final, state, {WHOLE: sealed(partial / WHOLE)})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{final}: cannot save the checkpoint: {error}") from error
    if keep:
        retire(folder, keep)
    _remove_leftovers(folder)
    return final


def partial_path(folder: Path, name: str, pid: int) -> Path:
    """Where process `pid` writes what is to become checkpoint `name`."""
    return folder / f".{name}.{pid}"


def sealed(path: Path) -> str:
    """The SHA-256 of the file at `path`, which has then reached the disk."""
    digest = sha256_of(path)
    sync(path)
    return digest


def commit(partial: Path, final: Path, state: dict[str, Any], hashes: dict[str, str]) -> None:
    """Makes the checkpoint whose tensors lie in `partial` count: state, manifest, and the rename. Raises OSError."""
    _write_json(partial / "state.json", state)
    hashes = {**hashes, "state.json": sealed(partial / "state.json")}
    _write_json(partial / "manifest.json", {"format": FORMAT, "sha256": hashes})
    sync(partial / "manifest.json")
    sync(partial)
    if final.exists():  # the same step of the same run: its bytes are the same, unless they were damaged
        shutil.rmtree(final)
    os.rename(partial, final)
    sync(final.parent)


def retired(steps: Iterable[int], keep: int, every: int | None = None, best: int | None = None) -> list[int]:
    """Those of the saved `steps` that may go: all but the `keep` newest, the first in each stretch of `every`, and
    the `best`."""
    old = sorted(steps)[:-keep]
    first_of: dict[int, int] = {}
    for step in sorted(steps):
        first_of.setdefault(step // every if every else 0, step)
    kept = set(first_of.values()) if every else set()
    return [step for step in old if step not in kept and step != best]


def retire(folder: Path, keep: int, every: int | None = None, best: int | None = None) -> None:
    """Removes what `retired` says."""
    for step in retired(saved_steps(folder), keep, every, best):
        shutil.rmtree(checkpoint_path(folder, step), ignore_errors=True)


def verify(path: Path, part: tuple[int, int] = (0, 1)) -> None:
    """Raises CheckpointError if the checkpoint at `path` is not what its manifest says: which file, and how.

    With `part` = (k, n), only every n-th file from the k-th is read: several processes share the work.
    """
    manifest = read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: written in format {manifest.get('format')}, this isoflop reads {FORMAT}")
    for name, expected in sorted(manifest["sha256"].items())[part[0] :: part[1]]:
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing")
        if sha256_of(path / name) != expected:
            raise CheckpointError(f"{path / name}: its SHA-256 differs from the manifest: truncated or altered")


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, verified against its manifest; CheckpointError says which file is damaged and how.

    One that several processes wrote is put together.
    """
    verify(path)
    state = read_state(path)
    try:
        if (path / WHOLE).is_file():
            return Checkpoint(path, load_file(path / WHOLE), state)
        from isoflop.train.sharded import read_whole  # takes torch.distributed.checkpoint with it

        return Checkpoint(path, read_whole(path), state)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """What the checkpoint at `path` says beside its tensors."""
    return read_json(path / "state.json")


def latest_checkpoint(folder: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of `folder` (of at most `at_most` steps); a damaged one is passed over, aloud."""
    for step in saved_steps(folder):
        if at_most is not None and step > at_most:
            continue
        try:
            return load_checkpoint(checkpoint_path(folder, step))
        except CheckpointError as error:
            warnings.warn(f"{error}; using the checkpoint before it", stacklevel=2)
    return None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left behind; a live writer in another process (a shared trunk) is left alone."""
    for path in folder.glob(".step-*"):
        pid = path.name.rpartition(".")[2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(path, ignore_errors=True)
