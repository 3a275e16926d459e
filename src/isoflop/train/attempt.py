"""One attempt at a run: the loop, which reads from top to bottom, and what it keeps at hand.

All ranks go through it alike: whatever a decision hangs on is the same everywhere, or is voted on with the loss. Rank 0
alone writes the journal, the status and the weights.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.config import RunConfig
from isoflop.data import Batch, Feed, Quarantine, Source, batches
from isoflop.data.loader import locate_batch
from isoflop.errors import CheckpointError, DataError
from isoflop.objectives import Objective
from isoflop.runs.directory import RunIdentity, Status
from isoflop.runs.journal import Row, chain_samples
from isoflop.train.checkpoints import (
    Progress,
    check_progress,
    checkpoint_path,
    latest_checkpoint,
    pack,
    save_checkpoint,
    set_aside,
    unpack,
)
from isoflop.train.evaluate import evaluate, save_reconstructions
from isoflop.train.forecast import train_flops_per_image
from isoflop.train.guards import Rollback, Watchdog
from isoflop.train.optim.build import rate_factor, trunk_steps
from isoflop.train.ranks import Ranks
from isoflop.train.record import AttemptLog, Meters, OnRow, train_row
from isoflop.train.saver import Saver
from isoflop.train.start import publish_weights
from isoflop.train.step import Step


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `state` is "done", "diverged" or "preempted" (asked to stop, it goes on when started again).

    Losses in nats, no accuracy where nothing is classified, `seconds` of training over all attempts.
    """

    state: str
    step: int
    heldout_loss: float
    heldout_accuracy: float | None
    seconds: float
    error: str = ""

    @classmethod
    def of(cls, status: Status) -> RunResult:
        """What a status says of the end of its run, at first sight and at every later one."""
        loss = math.nan if status.heldout_loss is None else status.heldout_loss
        return cls(status.state, status.step, loss, status.heldout_accuracy, status.seconds, status.error)


class Attempt:
    """What stays the same through the loop, so that the loop itself reads plainly."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        *,
        trunk: Path | None,
        objective: Objective,
        source: Source,
        heldout: Source,
        ranks: Ranks,
        on_row: OnRow | None,
        stop: Callable[[], bool],
        identity: RunIdentity,
        ends_when_stuck: bool = False,
        heals: bool = False,
    ) -> None:
        self.config = config
        self.directory = directory
        # A run that may go back is not the same as a longer one that goes back elsewhere.
        self.trunk = trunk if ranks.is_alone and not config.guards.spike else None
        self.objective = objective
        self.source = source
        self.heldout = heldout
        self.ranks = ranks
        self.stop = stop
        self.heals = heals
        self.step = Step(objective, source, config, ranks)
        self.record = AttemptLog(config, directory, is_first=ranks.is_first, on_row=on_row)
        self.saver = Saver(directory, config.checkpoint, ranks, identity.names, self.record.sync)
        self.quarantine = Quarantine(len(source))
        self.progress = Progress()
        ends = ends_when_stuck or not ranks.is_alone
        self.watchdog = Watchdog(directory, ranks.rank, config.guards.stuck_seconds, ends=ends)
        self.rewind = Rollback(config.guards, objective, self.step.optimizer)
        self.meters = Meters(
            directory,
            flops_per_image=train_flops_per_image(config, source.num_classes, source.channels),
            device=ranks.device,
            devices=ranks.world,
            began=time.perf_counter(),
        )

    def train(self) -> RunResult:
        config, objective, step = self.config, self.objective, self.step
        fork = trunk_steps(config.schedule, config.steps)
        origin = self._restore(fork)
        if self.heals and origin != "checkpoint":
            raise CheckpointError(
                f"{self.directory}: a finished run whose files are damaged, without a whole checkpoint to publish them "
                "from; delete status.json and model.safetensors to train it again"
            )
        progress = self.progress
        self.record.open(progress.step, origin)
        seconds_before, began = progress.seconds, time.perf_counter()
        saved_at, waited, stopping = began, 0.0, False
        self.record.status("running", progress)
        self.rewind.take(progress)

        objective.train()
        self.meters.resume(progress.data_step * config.batch_size)
        row: Row = {}
        while progress.step < config.steps and not stopping:
            feed = self._feed()
            for batch in feed:
                rate = config.optim.learning_rate * rate_factor(config.schedule, progress.step, config.steps)
                save_due = time.perf_counter() - saved_at >= config.checkpoint.every_seconds
                votes = self.stop(), save_due and self.ranks.is_first, bool(batch.damages)
                outcome = step(batch, rate, votes=votes)
                stopping, save_now, is_damaged = outcome.votes
                if is_damaged and not self.ranks.is_alone:
                    for damages in self.ranks.gather(batch.damages):
                        self.quarantine.add(damages)
                progress.samples = chain_samples(progress.samples, *self._consumed(batch))
                progress.step += 1
                now = time.perf_counter()
                progress.seconds = seconds_before + now - began
                self.watchdog.beat()
                self.saver.check()

                if outcome.updated:
                    progress.loss_sum += outcome.loss
                else:
                    progress.missed, progress.nonfinite = progress.missed + 1, progress.nonfinite + 1
                    if progress.nonfinite > config.guards.skip_nonfinite:
                        return self._diverged(batch, f"loss or gradient were not finite at step {progress.step}")
                if outcome.updated and (z := self.rewind.leap(outcome.loss, progress)) is not None:
                    if len(progress.skipped) == config.guards.rollbacks:
                        return self._diverged(batch, f"the loss leapt to {outcome.loss:.4g} at step {progress.step}")
                    self.record.write({**self.rewind.go_back(progress), "loss": outcome.loss, "z": z})
                    break  # the samples that come next are others now

                evaluate_now = progress.step == config.steps or (
                    config.evaluation.every is not None and progress.step % config.evaluation.every == 0
                )
                if evaluate_now or progress.step % config.log_every == 0:
                    norm = outcome.gradient_norm
                    row = train_row(progress, config.batch_size, learning_rate=rate, gradient_norm=norm)
                    row["data_wait"] = round((waited + feed.seconds_waiting) / (now - began), 4)  # share of the attempt
                    row |= self.meters.read(progress.data_step * config.batch_size, progress.seconds)
                    if evaluate_now:
                        row |= self._evaluate()
                        save_now |= self._is_best(row["heldout_loss"])
                    self.record.write(row)
                    self.meters.resume(progress.data_step * config.batch_size)
                if progress.step % config.guards.window == 0:
                    self.rewind.take(progress)
                if progress.step == fork:
                    self._leave_trunk(fork)
                if progress.step == config.steps or save_now or stopping:
                    saved_at = now
                    self._save()
                    self.record.status("running", progress)
                if stopping:
                    break
            waited += feed.seconds_waiting
        if progress.step < config.steps:
            return self._preempted()
        if not row.get("heldout_loss"):  # resumed after the last step: the journal has the row, this attempt has not
            row = row | self._evaluate()
        return self._finish(row)

    def close(self) -> None:
        """Ends what runs beside the loop."""
        try:
            self.watchdog.close()
        finally:  # the other ranks wait for this one to end its saves
            self.saver.close()

    def _restore(self, fork: int) -> str:
        """Puts back the newest checkpoint, of this run or of its trunk; says which."""
        state, origin = self.saver.restore(self.objective, self.step.optimizer), "checkpoint"
        if state is None and self.trunk:
            checkpoint = latest_checkpoint(self.trunk, at_most=fork, check=check_progress, unusable=set_aside)
            origin = "trunk"
            if checkpoint:
                unpack(checkpoint.tensors, self.objective, self.step.optimizer)
                state = checkpoint.state
        if state is None:
            return "scratch"
        self.progress = Progress.from_dict(state)
        return origin

    def _leave_trunk(self, fork: int) -> None:
        """Leaves the present step to longer runs, where none is there. That is an economy: its failure ends no run."""
        if not self.trunk or checkpoint_path(self.trunk, fork).exists():
            return
        try:
            save_checkpoint(self.trunk, pack(self.objective, self.step.optimizer), self.progress.to_dict())
        except CheckpointError as error:
            warnings.warn(f"{error}; training goes on, longer runs train these steps again", stacklevel=2)

    def _feed(self) -> Feed:
        """The batches from the samples that come next to the end of the run."""
        config, progress = self.config, self.progress
        prepared = batches(
            self.source,
            seed=config.data.seed,
            batch_size=config.batch_size,
            start_step=progress.data_step,
            stop_step=config.steps + progress.data_step - progress.step,
            augment=config.data.augment,
            randaugment=config.data.randaugment,
            interpolation=config.data.interpolation,
            workers=config.data.workers,
            rank=self.ranks.rank,
            world=self.ranks.world,
            quarantine=self.quarantine,
        )
        return Feed(prepared, self.ranks.device)

    def _consumed(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and indices of the global batch, of which `batch` is this rank's part, fed as the order says."""
        if self.ranks.is_alone:
            return batch.epochs, batch.indices
        config = self.config
        epochs, indices = locate_batch(self.source, config.data.seed, config.batch_size, batch.step)
        mine = slice(batch.first, batch.first + len(batch.indices))
        if not (np.array_equal(epochs[mine], batch.epochs) and np.array_equal(indices[mine], batch.indices)):
            raise DataError(f"rank {self.ranks.rank} was fed other samples at step {batch.step} than the order says")
        return epochs, indices

    def _evaluate(self) -> dict[str, float]:
        size, precision = self.config.evaluation.batch_size, self.step.precision
        with self.step.shown_weights():
            found = evaluate(
                self.objective,
                self.heldout,
                batch_size=size,
                ranks=self.ranks,
                precision=precision,
                beat=self.watchdog.beat,
            )
            save_reconstructions(
                self.objective, self.heldout, self.directory, self.progress.step, self.ranks, precision
            )
        return found

    def _is_best(self, loss: float) -> bool:
        """Notes a new minimum of the held-out loss, where its checkpoint is to be kept."""
        progress = self.progress
        if not self.config.checkpoint.keep_best or (progress.best and progress.best[0] <= loss):
            return False
        progress.best = [loss, progress.step]
        return True

    def _save(self) -> None:
        """Begins a checkpoint: of the last snapshot where there are any, since that is what a resumed run can go back
        to, else of the present."""
        if self.quarantine.found and self.ranks.is_first:
            self.quarantine.save(self.directory / "quarantine.jsonl")
        tensors, state = pack(self.objective, self.step.optimizer), self.progress.to_dict()
        if self.rewind.snapshot and self.progress.step < self.config.steps:
            tensors, state = self.rewind.snapshot
        best = int(self.progress.best[1]) if self.progress.best else None
        self.saver.save(tensors, state, best)

    def _end(self, state: str, **more: Any) -> RunResult:
        """Commits how the run has ended, after all that speaks of it."""
        self.record.close()
        return RunResult.of(self.record.status(state, self.progress, **more))

    def _diverged(self, batch: Batch, what: str) -> RunResult:
        self.saver.wait()
        self.record.divergence(what, self.progress, *self._consumed(batch))
        times = len(self.progress.skipped)
        after = f", after {times} rollbacks" if times else ""
        return self._end("diverged", error=f"{what}{after} (learning rate {self.config.optim.learning_rate:g})")

    def _preempted(self) -> RunResult:
        self.saver.wait()
        if self.saver.failure:
            raise CheckpointError(f"asked to stop, but {self.saver.failure}")
        return self._end("preempted", error=f"asked to stop at step {self.progress.step}")

    def _finish(self, row: Row) -> RunResult:
        self.saver.wait()
        if not math.isfinite(row["heldout_loss"]):
            rate = self.config.optim.learning_rate
            return self._end("diverged", error=f"the held-out loss is not finite (learning rate {rate:g})")
        with self.step.shown_weights():
            preset = self.config.model.name
            files = publish_weights(self.objective, self.directory, preset, is_first=self.ranks.is_first)
        heldout = {"heldout_loss": row["heldout_loss"], "heldout_accuracy": row.get("heldout_accuracy")}
        return self._end("done", **heldout, files=files)
