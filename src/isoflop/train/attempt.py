"""One attempt at a run: the training loop and its state.

All ranks execute the same code. Values that decisions depend on are equal on all ranks, or are reduced with the loss.
Only rank 0 writes the journal, the status and the weights.
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

from isoflop.config import RunConfig, UnlabelledConfig
from isoflop.data import Batch, Feed, Quarantine, Source, batches
from isoflop.data.loader import locate_batch
from isoflop.errors import CheckpointError, DataError
from isoflop.objectives import Objective
from isoflop.runs.directory import FOUND, RunIdentity, Status
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
from isoflop.train.probe import probe
from isoflop.train.ranks import Ranks
from isoflop.train.record import AttemptLog, Meters, OnRow, train_row
from isoflop.train.saver import Saver
from isoflop.train.start import publish_weights
from isoflop.train.step import Outcome, Step, read_outcomes


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `state` is "done", "diverged" or "preempted" (asked to stop, it goes on when started again).

    Losses in nats, no accuracy where nothing is classified, `seconds` of training over all attempts. `probe_accuracy`
    and `rankme` are of objectives without labels, see `probe`.
    """

    state: str
    step: int
    heldout_loss: float
    heldout_accuracy: float | None
    seconds: float
    error: str = ""
    probe_accuracy: float | None = None
    rankme: float | None = None

    @classmethod
    def of(cls, status: Status) -> RunResult:
        """What a status says of the end of its run, at first sight and at every later one."""
        loss = math.nan if status.heldout_loss is None else status.heldout_loss
        return cls(
            status.state,
            status.step,
            loss,
            status.heldout_accuracy,
            status.seconds,
            status.error,
            status.probe_accuracy,
            status.rankme,
        )


@dataclass(frozen=True)
class _Made:
    """A step that was made, whose numbers are still on the device: progress after it, and its samples."""

    step: int
    chain: str
    seconds: float
    samples: tuple[NDArray[np.int64], NDArray[np.int64]]
    outcome: Outcome


MOST_UNREAD = 64
"""Steps whose numbers may be on the device; a run that diverges makes at most so many in vain."""


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
        seconds_before: float = 0.0,
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
        self.progress = Progress(seconds=seconds_before)  # that led to the weights it starts from
        self.fork = trunk_steps(config.schedule, config.steps)
        self.row: Row = {}
        self.stopping, self.waited = False, 0.0
        self.unread: list[_Made] = []
        # Ranks agree in every step, and a rollback needs the loss of each.
        self.most_unread = MOST_UNREAD if ranks.is_alone and not config.guards.spike else 1
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
        """The loop over steps, from the newest checkpoint to the end of the run, a stop or a divergence."""
        config, progress = self.config, self._begin()
        self._judge_start()
        while progress.step < config.steps and not self.stopping:
            feed = self._feed()
            for batch in feed:
                rate = config.optim.learning_rate * rate_factor(config.schedule, progress.step, config.steps)
                outcome = self.step(batch, rate, votes=self._votes(batch))
                self.stopping, save_now, is_damaged = outcome.votes
                self._count(batch, outcome, is_damaged)
                logs = self._evaluates() or progress.step % config.log_every == 0
                ends = save_now or self.stopping or (self.trunk is not None and progress.step == self.fork)
                if logs or ends or len(self.unread) >= self.most_unread:
                    loss, norm, samples = self._read()
                    if progress.nonfinite > config.guards.skip_nonfinite:
                        return self._diverged(samples, f"loss or gradient were not finite at step {progress.step}")
                    updated = math.isfinite(loss) and math.isfinite(norm)
                    if updated and (z := self.rewind.leap(loss, progress)) is not None:
                        if len(progress.skipped) == config.guards.rollbacks:
                            what = f"the loss has a spike of {loss:.4g} at step {progress.step}"
                            return self._diverged(samples, what)
                        self.record.write({**self.rewind.go_back(progress), "loss": loss, "z": z})
                        break  # the samples that come next are others now
                if logs:
                    save_now |= self._log(rate, norm, feed)
                if progress.step % config.guards.window == 0:
                    self.rewind.take(progress)
                if progress.step == self.fork:
                    self._leave_trunk()
                if progress.step == config.steps or save_now or self.stopping:
                    self._save()
                if self.stopping:
                    break
            self.waited += feed.seconds_waiting
        if progress.step < config.steps:
            return self._preempted()
        if not self.row.get("heldout_loss"):  # resumed after the last step: the journal has the row
            self.row = self.row | self._evaluate()
        return self._finish(self.row)

    def _begin(self) -> Progress:
        """Restores the newest checkpoint and opens the journal; where the run stands."""
        origin = self._restore()
        if self.heals and origin != "checkpoint":
            raise CheckpointError(
                f"{self.directory}: a finished run whose files are damaged, without a whole checkpoint to publish them "
                "from; delete status.json and model.safetensors to train it again"
            )
        progress = self.progress
        self.record.open(progress.step, origin)
        self.seconds_before, self.began = progress.seconds, time.perf_counter()
        self.saved_at = self.began
        self.record.status("running", progress)
        self.rewind.take(progress)
        self.objective.train()
        self.meters.resume(progress.data_step * self.config.batch_size)
        return progress

    def _judge_start(self) -> None:
        """Notes how good the weights are that a run starts from, where it publishes its best and they have a
        classifier: fine-tuning that only makes them worse ends with them."""
        config = self.config
        if self.progress.step or not (config.start and config.start.head == "keep" and config.evaluation.restore_best):
            return
        if self._is_best(self._evaluate()["heldout_loss"]):
            self._save()

    def _votes(self, batch: Batch) -> tuple[bool, bool, bool]:
        """What all ranks decide together: to stop, to save, and whether an image was damaged."""
        save_due = time.perf_counter() - self.saved_at >= self.config.checkpoint.every_seconds
        return self.stop(), save_due and self.ranks.is_first, bool(batch.damages)

    def _count(self, batch: Batch, outcome: Outcome, is_damaged: bool) -> None:
        """Counts a step that was made: its samples, its time. What came of it, `_read` counts."""
        if is_damaged and not self.ranks.is_alone:
            for damages in self.ranks.gather(batch.damages):
                self.quarantine.add(damages)
        progress = self.progress
        consumed = self._consumed(batch)
        progress.samples = chain_samples(progress.samples, *consumed)
        progress.step += 1
        progress.seconds = self._seconds()
        self.watchdog.beat()
        self.saver.check()
        self.unread.append(_Made(progress.step, progress.samples, progress.seconds, consumed, outcome))

    def _read(self) -> tuple[float, float, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Counts the losses of the steps that are unread; loss, gradient norm and samples of the last one.

        That is the one at which too many were not finite, if there is one: `progress` is then as it was after it.
        """
        progress = self.progress
        unread, self.unread = self.unread, []
        for made, (loss, norm) in zip(unread, read_outcomes([made.outcome for made in unread]), strict=True):
            if math.isfinite(loss) and math.isfinite(norm):
                progress.loss_sum += loss
                continue
            progress.missed, progress.nonfinite = progress.missed + 1, progress.nonfinite + 1
            if progress.nonfinite > self.config.guards.skip_nonfinite:
                progress.step, progress.samples, progress.seconds = made.step, made.chain, made.seconds
                break
        else:
            progress.seconds = self._seconds()  # the device has made these steps only now
        return loss, norm, made.samples

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def _evaluates(self) -> bool:
        """Whether the held-out loss is measured after this step."""
        step, every = self.progress.step, self.config.evaluation.every
        return step == self.config.steps or (every is not None and step % every == 0)

    def _log(self, rate: float, norm: float, feed: Feed) -> bool:
        """Writes a row of the journal, with the held-out loss where it is due; whether that is the best so far."""
        progress, images = self.progress, self.progress.data_step * self.config.batch_size
        self.row = train_row(progress, self.config.batch_size, learning_rate=rate, gradient_norm=norm)
        taken = progress.seconds - self.seconds_before
        self.row["data_wait"] = round((self.waited + feed.seconds_waiting) / taken, 4)  # share of the attempt
        self.row |= self.meters.read(images, progress.seconds)
        is_best = False
        if self._evaluates():
            self.row |= self._evaluate()
            is_best = self._is_best(self.row["heldout_loss"])
        self.record.write(self.row)
        self.meters.resume(images)
        return is_best

    def close(self) -> None:
        """Ends what runs beside the loop."""
        try:
            self.watchdog.close()
        finally:  # the other ranks wait for this one to end its saves
            self.saver.close()

    def _restore(self) -> str:
        """Puts back the newest checkpoint, of this run or of its trunk; says which."""
        state, origin = self.saver.restore(self.objective, self.step.optimizer), "checkpoint"
        if state is None and self.trunk:
            checkpoint = latest_checkpoint(self.trunk, at_most=self.fork, check=check_progress, unusable=set_aside)
            origin = "trunk"
            if checkpoint:
                unpack(checkpoint.tensors, self.objective, self.step.optimizer)
                state = checkpoint.state
        if state is None:
            return "scratch"
        self.progress = Progress.from_dict(state)
        if origin == "trunk":
            self.progress.best = []  # its checkpoint lies in the folder of another run
        return origin

    def _leave_trunk(self) -> None:
        """Leaves the present step to longer runs, where none is there. That is an economy: its failure ends no run."""
        if not self.trunk or checkpoint_path(self.trunk, self.fork).exists():
            return
        try:
            save_checkpoint(self.trunk, pack(self.objective, self.step.optimizer), self.progress.to_dict())
        except CheckpointError as error:
            warnings.warn(f"{error}; training continues, longer runs train these steps again", stacklevel=2)

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
            raise DataError(f"rank {self.ranks.rank} received other samples at step {batch.step} than the sample order")
        return epochs, indices

    def _evaluate(self) -> dict[str, float]:
        precision, config = self.step.precision, self.config
        size = config.batch_size if self.objective.is_of_batch else config.evaluation.batch_size
        with self.step.shown_weights():
            found = evaluate(
                self.objective,
                self.heldout,
                batch_size=size,
                ranks=self.ranks,
                precision=precision,
                beat=self.watchdog.beat,
            )
            if isinstance(config.objective, UnlabelledConfig):
                found |= probe(
                    self.objective,
                    self.source,
                    self.heldout,
                    seed=config.data.seed,
                    batch_size=config.evaluation.batch_size,
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
        is_asked = self.config.checkpoint.keep_best or self.config.evaluation.restore_best
        if not is_asked or not math.isfinite(loss) or (progress.best and progress.best[0] <= loss):
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
        self.saved_at = time.perf_counter()
        self.saver.save(tensors, state, best)
        self.record.status("running", self.progress)

    def _end(self, state: str, **more: Any) -> RunResult:
        """Commits how the run has ended, after all that speaks of it."""
        self.record.close()
        return RunResult.of(self.record.status(state, self.progress, **more))

    def _diverged(self, samples: tuple[NDArray[np.int64], NDArray[np.int64]], what: str) -> RunResult:
        self.saver.wait()
        self.record.divergence(what, self.progress, *samples)
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
        best_step = self._restore_best()
        if best_step is not None:
            row = row | self._evaluate()
        with self.step.shown_weights():
            preset = self.config.model.name
            files = publish_weights(self.objective, self.directory, preset, is_first=self.ranks.is_first)
        return self._end("done", **{name: row.get(name) for name in FOUND}, files=files, best_step=best_step)

    def _restore_best(self) -> int | None:
        """Puts back the weights with the lowest held-out loss, where they are asked for and not the last; their
        step."""
        best, config = self.progress.best, self.config
        if not config.evaluation.restore_best or not best or int(best[1]) == config.steps:
            return None
        step = int(best[1])
        if self.saver.restore(self.objective, self.step.optimizer, only=step) is None:
            lost = f"the checkpoint of step {step}, with the lowest held-out loss, is not there"
            warnings.warn(f"{self.directory}: {lost}: the last weights are published", stacklevel=2)
            return None
        return step
