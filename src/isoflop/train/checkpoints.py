"""Checkpoints that are complete or absent: safetensors and JSON, a SHA-256 manifest, and an atomic rename.

A checkpoint is a directory `step-000000123/` with one or more files of tensors, `state.json` and `manifest.json`. It is
written under a hidden name, synced, and renamed: a kill at any moment leaves either the old set or the new one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isoflop.errors import CheckpointError
from isoflop.runs.files import make_folder, read_json, sha256_of, sync, to_json
from isoflop.runs.lock import remove_unfinished, unfinished_path
from isoflop.train.sharded import read_whole

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
    """The steps of the checkpoints in `folder`, newest first, verified or not. Copies under other names and what was
    set aside do not count."""
    if not folder.is_dir():
        return []
    found = (int(p.name[5:]) for p in folder.iterdir() if re.fullmatch(r"step-[0-9]{12,}", p.name))
    return sorted((step for step in found if checkpoint_path(folder, step).is_dir()), reverse=True)


def save_checkpoint(
    folder: Path,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    keep: int | None = None,
    *,
    before_commit: Callable[[], None] = lambda: None,
) -> Path:
    """Writes a checkpoint for `state["step"]` and drops all but the `keep` newest; returns its path.

    `before_commit` syncs what the checkpoint relies on. Raises CheckpointError when the storage refuses (full,
    read-only); what was there before is then untouched.
    """
    final = checkpoint_path(folder, int(state["step"]))
    partial = unfinished_path(final)
    try:
        make_folder(folder)
        partial.mkdir()
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, partial / WHOLE)
        hashes = {WHOLE: sealed(partial / WHOLE)}
        before_commit()
        commit(partial, final, state, hashes)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{final}: cannot save the checkpoint: {error}") from error
    if keep:
        retire(folder, keep)
    remove_unfinished(folder, "step-")
    return final


def sealed(path: Path) -> str:
    """The SHA-256 of the file at `path`, which has then reached the disk."""
    digest = sha256_of(path)
    sync(path)
    return digest


def commit(partial: Path, final: Path, state: dict[str, Any], hashes: dict[str, str]) -> None:
    """Makes the checkpoint whose tensors lie in `partial` count: state, manifest, and the rename. Raises OSError."""
    (partial / "state.json").write_text(to_json(state), encoding="utf-8")
    hashes = {**hashes, "state.json": sealed(partial / "state.json")}
    (partial / "manifest.json").write_text(to_json({"format": FORMAT, "sha256": hashes}), encoding="utf-8")
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
    manifest = read_json(path / "manifest.json", {"format": int, "sha256": dict})
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{path}: written in format {manifest['format']}, this isoflop reads {FORMAT}")
    for name, expected in sorted(manifest["sha256"].items())[part[0] :: part[1]]:
        if Path(name).name != name or not (path / name).is_file():
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
        return Checkpoint(path, read_whole(path), state)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """What the checkpoint at `path` says beside its tensors."""
    return read_json(path / "state.json", {"step": int})


def latest_checkpoint(
    folder: Path,
    at_most: int | None = None,
    *,
    check: Callable[[Checkpoint], None] = lambda checkpoint: None,
    unusable: Callable[[Path, str], None] = lambda path, why: warnings.warn(
        f"{why}; using the checkpoint before it", stacklevel=3
    ),
) -> Checkpoint | None:
    """The newest whole checkpoint of `folder` (of at most `at_most` steps) that `check` does not refuse.

    One that is damaged, or of another format, is given to `unusable`, which by default warns. Raises CheckpointError
    where one cannot be read now, though it may be whole.
    """
    for step in saved_steps(folder):
        if at_most is not None and step > at_most:
            continue
        path = checkpoint_path(folder, step)
        with explain_unreadable(path):
            try:
                found = load_checkpoint(path)
                check(found)
                return found
            except CheckpointError as error:
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                unusable(path, str(error))
    return None


@contextmanager
def explain_unreadable(path: Path) -> Iterator[None]:
    """What the storage does not give is no damage: it says so, and what to do."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path}: cannot read the checkpoint: {error.strerror or error}; try again, or rename "
            f"{path.name} to resume from the previous checkpoint"
        ) from error


def set_aside(path: Path, why: str) -> None:
    """Renames the checkpoint at `path`, which is of no use, to `unusable-step-…`, and warns."""
    aside = path.with_name(f"unusable-{path.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"unusable-{path.name}-{number}")
    try:
        os.rename(path, aside)
        where = f"it is set aside as {aside.name}, which can be deleted"
    except OSError as error:
        where = f"it cannot be set aside: {error.strerror}"
    warnings.warn(f"{why}; using the checkpoint before it ({where})", stacklevel=3)


# The whole state of a run as named tensors and JSON, and back.


@dataclass
class Progress:
    """How far a run has come: all that the next step needs beside weights and optimizer state.

    The data need nothing more than `step`: which samples come next is a pure function of it.
    """

    step: int = 0  # steps consumed
    since: int = 0  # the step of the last journal row
    loss_sum: float = 0.0  # of the steps after it
    samples: str = ""  # the chain over all samples consumed (runs/journal.py)
    seconds: float = 0.0  # spent in training over all attempts; the only field that two equal runs may differ in
    missed: int = 0  # steps since the last journal row whose loss was not finite
    nonfinite: int = 0  # steps without an update, since loss or gradient were not finite
    skipped: list[list[int]] = field(default_factory=list)  # [step, steps of samples skipped before it], in order
    recent: list[float] = field(default_factory=list)  # losses that a spike is compared with
    best: list[float] = field(default_factory=list)  # the lowest held-out loss and its step

    @property
    def data_step(self) -> int:
        """The step of the sample order that comes next."""
        return self.step + sum(count for _, count in self.skipped)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Progress:
        """What `to_dict` made; what a later version has added is ignored. CheckpointError where it is something
        else."""
        known = {name: state[name] for name in cls.__dataclass_fields__ if name in state}
        default = cls()
        for name, value in known.items():
            kind = type(getattr(default, name))
            if isinstance(value, bool) or not isinstance(value, (kind, int) if kind is float else kind):
                raise CheckpointError(f"state.json: not readable: `{name}` is {value!r}")
        return cls(**known)


def check_progress(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where the state of `checkpoint` is not that of a run."""
    try:
        Progress.from_dict(checkpoint.state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}/{error}") from error


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of `model` (as `model.NAME`) and `optimizer` (as `optimizer.PARAMETER.SLOT`).

    Names and not numbers, since the order of an optimizer's groups may depend on how the model is sharded.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        slots = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Puts packed tensors back; CheckpointError names what is missing or does not fit."""
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from error
    if optimizer is None:
        return
    parameters = dict(model.named_parameters())
    numbers = {p: number for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    slots: dict[int, dict[str, Tensor]] = {}
    for packed, tensor in tensors.items():
        if packed.startswith("optimizer."):
            name, _, slot = packed.removeprefix("optimizer.").rpartition(".")
            if parameters.get(name) not in numbers:
                raise CheckpointError(f"the checkpoint does not fit the optimizer: it has a state of {name}")
            parameter = parameters[name]
            if tensor.shape == parameter.shape:
                # Fused updates walk weight and state side by side in memory: the state must lie as the weight does.
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            slots.setdefault(numbers[parameter], {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def step_seed(seed: int, step: int) -> int:
    """The seed of the random layers (stochastic depth, dropout) at `step`, whatever happened before."""
    return int.from_bytes(hashlib.blake2b(f"layers {seed} {step}".encode(), digest_size=8).digest(), "little") >> 1
