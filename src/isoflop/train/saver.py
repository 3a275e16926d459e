"""Saving of checkpoints in a background thread, one at a time.

A save copies the state and returns. If it fails, it prints a warning, training continues, and the previous checkpoint
stays valid. Several processes write together, with their own process group, so that their messages do not mix with
those of training; a save is valid on all of them or on none.
"""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.config import CheckpointConfig
from isoflop.errors import CheckpointError, ConfigError
from isoflop.runs.files import make_folder
from isoflop.runs.lock import remove_unfinished, unfinished_path
from isoflop.train.checkpoints import (
    Checkpoint,
    check_progress,
    checkpoint_path,
    commit,
    explain_unreadable,
    latest_checkpoint,
    pack,
    read_state,
    retire,
    save_checkpoint,
    saved_steps,
    sealed,
    set_aside,
    unpack,
    verify,
)
from isoflop.train.ranks import Ranks
from isoflop.train.remote import Remote
from isoflop.train.sharded import begin_write, read_into, shard_files


class Saver:
    """Saves and restores the checkpoints of the run in `directory`, or in the folder `name` of `config.folder`.

    `failure` says in one line why the last save failed, and is empty after one that succeeded. Raises ConfigError for a
    `config.folder` that cannot be reached, or written.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        ranks: Ranks,
        names: Sequence[str],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = directory / "checkpoints"
        self.failure = ""
        self._directory = directory
        self._config = config
        self._ranks = ranks
        self._before_commit = before_commit
        self._remote: Remote | None = None
        if config.folder and "://" in config.folder:
            ranks.first_does(lambda: self._reach([f"{config.folder}/{name}" for name in names]))
        elif config.folder:
            places = [Path(config.folder).expanduser() / name for name in names]
            self.folder = next((place for place in places if place.is_dir()), places[0])
            ranks.first_does(self._make_folder)
        ranks.first_does(self._remove_unfinished)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._group: Any = None
        if not ranks.is_alone:
            import torch.distributed as dist

            self._group = dist.new_group(backend="gloo")

    def _reach(self, addresses: Sequence[str]) -> None:
        self._remote = next((copy for copy in map(Remote, addresses) if copy.exists()), None) or Remote(addresses[0])

    def _download(self) -> None:
        if self._remote:
            self._remote.download(self.folder, self._directory)

    def _remove_unfinished(self) -> None:
        """Of a run's own folder it is the only writer: whatever is unfinished there was left by one that was killed."""
        if self.folder.parent == self._directory:
            for path in self.folder.glob(".step-*"):
                shutil.rmtree(path, ignore_errors=True)
        else:
            remove_unfinished(self.folder, "step-")

    def _make_folder(self) -> None:
        try:
            make_folder(self.folder)
        except OSError as error:
            raise ConfigError(f"checkpoint.folder = {self._config.folder}: cannot write: {error.strerror}") from error

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any], best: int | None = None) -> None:
        """Starts to write `tensors` and `state` as they are now; waits for the save before, if it is still on."""
        self.wait()
        write: Callable[[], None]
        if self._ranks.is_alone:
            copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}

            def write() -> None:
                save_checkpoint(self.folder, copies, state, before_commit=self._before_commit)
                self._written(checkpoint_path(self.folder, int(state["step"])), best)
        else:
            final = checkpoint_path(self.folder, int(state["step"]))
            partial = self._ranks.from_first(unfinished_path(final))
            started = begin_write(partial, tensors, self._group)

            def write() -> None:
                self._finish_together(started, partial, final, state)
                if self._ranks.is_first:
                    self._written(final, best)

        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Says aloud if a save has failed in the meantime."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being saved."""
        if not self._pending:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
            self.failure = ""
        except (CheckpointError, OSError) as error:
            self.failure = " ".join(str(error).split())
            if self._ranks.is_first:
                warnings.warn(f"{self.failure}; training continues, the previous checkpoint is valid", stacklevel=2)

    def close(self) -> None:
        """Waits for the last save and ends the thread."""
        self.wait()
        self._thread.shutdown()

    def restore(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, only: int | None = None
    ) -> dict[str, Any] | None:
        """Puts the newest whole checkpoint back, or that of step `only`, on any number of ranks whatever wrote it; its
        state, or None.

        A damaged one, or one of another format, is set aside with a warning.
        """
        self._ranks.first_does(self._download)
        if self._ranks.is_alone:
            if only is not None and only not in saved_steps(self.folder):
                return None
            checkpoint = latest_checkpoint(self.folder, only, check=check_progress, unusable=self._set_aside)
            if checkpoint is None or only not in (None, checkpoint.step):
                return None
            unpack(checkpoint.tensors, model, optimizer)
            return checkpoint.state
        for step in [step for step in self._ranks.from_first(saved_steps(self.folder)) if only in (None, step)]:
            path = checkpoint_path(self.folder, step)
            told = self._ranks.gather(self._damage(path))
            if unreadable := [error for error in told if isinstance(error, OSError)]:
                with explain_unreadable(path):
                    raise unreadable[0]
            found = [error for error in told if error]
            if not found:
                unpack(read_into(path, model, pack(model, optimizer), self._group), model, optimizer)
                return read_state(path)
            self._ranks.first_does(functools.partial(self._set_aside, path, str(found[0])))
        return None

    def _set_aside(self, path: Path, why: str) -> None:
        set_aside(path, why)
        if self._remote:
            self._remote.discount(path.name)

    def _damage(self, path: Path) -> str | OSError:
        try:
            verify(path, (self._ranks.rank, self._ranks.world))
            check_progress(Checkpoint(path, {}, read_state(path)))
        except CheckpointError as error:
            return error.__cause__ if isinstance(error.__cause__, OSError) else str(error)
        except OSError as error:
            return error
        return ""

    def _written(self, path: Path, best: int | None) -> None:
        config = self._config
        retire(self.folder, config.keep, config.keep_every, best)
        if self._remote:
            self._remote.upload(path, self._directory, config.keep, config.keep_every, best)

    def _finish_together(self, started: Future[Any], partial: Path, final: Path, state: dict[str, Any]) -> None:
        import torch.distributed as dist
        from torch.distributed.checkpoint.api import CheckpointException

        hashes, error = {}, ""
        try:
            started.result()
            hashes = {file.name: sealed(file) for file in shard_files(partial, self._ranks.rank)}
        except (Exception, CheckpointException) as reason:  # whatever it is, the others must hear of it
            error = _told(reason)
        told: list[Any] = [None] * self._ranks.world
        dist.all_gather_object(told, (hashes, error), group=self._group)
        error = next((error for _, error in told if error), "")
        if self._ranks.is_first and not error:
            try:
                self._before_commit()
                commit(partial, final, state, {name: h for hashes, _ in told for name, h in hashes.items()})
            except OSError as reason:
                error = str(reason)
        box = [error]
        dist.broadcast_object_list(box, src=0, group=self._group)
        if box[0]:
            if self._ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{final}: cannot save the checkpoint: {' '.join(box[0].split())}")


def _told(reason: BaseException) -> str:
    """What went wrong in one line; of what `torch.distributed.checkpoint` says, the cause and not its traceback."""
    failures = getattr(reason, "failures", None)
    if isinstance(failures, dict) and failures:
        found: Any = next(iter(failures.values()))
        reason = found[0] if isinstance(found, tuple) else found
    text = " ".join(str(reason).split())[:500]
    return text if isinstance(reason, OSError) else f"{type(reason).__name__}: {text}"
