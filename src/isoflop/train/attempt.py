"""One attempt at a run: the loop, which reads from top to bottom, and what it keeps at hand.

All ranks go through it alike: whatever a decision hangs on is the same everywhere, or is voted on with the loss. Rank 0
alone writes the journal, the status and the weights.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from isoflop.config import RunConfig
from isoflop.data import Batch, Feed, Quarantine, Source, batches
from isoflop.data.loader import locate_batch
from isoflop.errors import CheckpointError, DataError
from isoflop.objectives import Objective
from isoflop.train.boards import Boards
from isoflop.train.checkpoints import checkpoint_path, latest_checkpoint, save_checkpoint
from isoflop.train.evaluate import evaluate
from isoflop.train.guards import Watchdog, robust_z
from isoflop.train.journal import JournalWriter, Row, chain_samples
from isoflop.train.meters import Meters
from isoflop.train.price import train_flops_per_image
from isoflop.train.ranks import Ranks
from isoflop.train.reconstructions import save_reconstructions
from isoflop.train.run_directory import write_status
from isoflop.train.saver import Saver
from isoflop.train.schedules import rate_factor, trunk_steps
from isoflop.train.shards import whole
from isoflop.train.state import Progress, pack, unpack
from isoflop.train.step import Step

OnRow = Callable[[Row], None]


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
    ) -> None:
        self.config = config
        self.directory = directory
        # A run that may go back is not the same as a longer one that goes back elsewhere.
        self.trunk = trunk if ranks.is_alone and not config.guards.spike else None
        self.objective = objective
        self.source = source
        self.heldout = heldout
        self.ranks = ranks
        self.on_row = on_row
        self.stop = stop
        self.step = Step(objective, source, config, ranks)
        self.saver = Saver(directory, config.checkpoint, ranks)
        self.quarantine = Quarantine(len(source))
        self.progress = Progress()
        self.watchdog = Watchdog(directory, ranks.rank, config.guards.stuck_seconds, ends=not ranks.is_alone)
        self.snapshot: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.journal: JournalWriter | None = None
        self.boards: Boards | None = None
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
        progress = self.progress
        self._open(origin)
        seconds_before, began = progress.seconds, time.perf_counter()
        saved_at, waited, stopping = began, 0.0, False
        self._status("running")
        self._take_snapshot()

        objective.train()
        self.meters.resume(progress.data_step * config.batch_size)
        row: Row = {}
        while progress.step < config.steps and not stopping:
            feed = self._feed()
            for batch in feed:
                rate = config.optim.learning_rate * rate_factor(config.schedule, progress.step, config.steps)
                save_due = time.perf_counter() - saved_at >= config.checkpoint.every_seconds
                outcome = step(batch, rate, votes=(self.stop(), save_due and self.ranks.is_first))
                stopping, save_now = outcome.votes
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
                if config.guards.spike and outcome.updated:
                    z = robust_z(outcome.loss, progress.recent)
                    if z > config.guards.spike:
                        if len(progress.skipped) == config.guards.rollbacks:
                            return self._diverged(
                                batch, f"the loss leapt to {outcome.loss:.4g} at step {progress.step}"
                            )
                        self._roll_back(outcome.loss, z)
                        break  # the samples that come next are others now
                    progress.recent = [*progress.recent, outcome.loss][-config.guards.window :]

                evaluate_now = progress.step == config.steps or (
                    config.evaluation.every is not None and progress.step % config.evaluation.every == 0
                )
                if evaluate_now or progress.step % config.log_every == 0:
                    row = self._row(rate, outcome.gradient_norm)
                    row["data_wait"] = round((waited + feed.seconds_waiting) / (now - began), 4)  # share of the attempt
                    row |= self.meters.read(progress.data_step * config.batch_size, progress.seconds)
                    if evaluate_now:
                        row |= self._evaluate()
                        save_now |= self._is_best(row["heldout_loss"])
                    self._write(row)
                    self.meters.resume(progress.data_step * config.batch_size)
                if progress.step % config.guards.window == 0:
                    self._take_snapshot()
                if self.trunk and progress.step == fork and not checkpoint_path(self.trunk, fork).exists():
                    save_checkpoint(self.trunk, pack(objective, step.optimizer), progress.to_dict())
                if progress.step == config.steps or save_now or stopping:
                    saved_at = now
                    self._save()
                    self._status("running")
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
            checkpoint, origin = latest_checkpoint(self.trunk, at_most=fork), "trunk"
            if checkpoint:
                unpack(checkpoint.tensors, self.objective, self.step.optimizer)
                state = checkpoint.state
        if state is None:
            return "scratch"
        self.progress = Progress(**state)
        return origin

    def _open(self, origin: str) -> None:
        if not self.ranks.is_first:
            return
        self.journal = JournalWriter(self.directory, self.progress.step, origin)
        self.boards = Boards(self.config, self.directory, self.progress.step)

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

    def _row(self, learning_rate: float, gradient_norm: float) -> Row:
        progress = self.progress
        counted = progress.step - progress.since - progress.missed
        row = {
            "kind": "train",
            "step": progress.step,
            "since": progress.since,
            "images": progress.step * self.config.batch_size,
            "samples": progress.samples,
            "loss": progress.loss_sum / counted if counted else math.nan,
            "lr": learning_rate,
            "gradient_norm": gradient_norm,
            "seconds": round(progress.seconds, 4),
        }
        if progress.nonfinite:
            row["nonfinite"] = progress.nonfinite
        progress.since, progress.loss_sum, progress.missed = progress.step, 0.0, 0
        return row

    def _write(self, row: Row) -> None:
        if self.journal:
            self.journal.write(row)
            if self.boards and row["kind"] == "train":
                self.boards.write(row)
            if self.on_row and row["kind"] == "train":
                self.on_row(row)

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

    def _take_snapshot(self) -> None:
        """Copies the state to go back to, where spikes are watched for."""
        if self.config.guards.spike:
            tensors = pack(self.objective, self.step.optimizer)
            copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            self.snapshot = (copies, self.progress.to_dict())

    def _roll_back(self, loss: float, z: float) -> None:
        """Puts the last snapshot back and passes over the samples since."""
        assert self.snapshot is not None
        progress, (tensors, state) = self.progress, self.snapshot
        first, count = int(state["step"]), progress.step - int(state["step"])
        unpack({name: t.clone() for name, t in tensors.items()}, self.objective, self.step.optimizer)
        seconds = progress.seconds
        for name, value in asdict(Progress(**state)).items():
            setattr(progress, name, value)
        progress.seconds = seconds
        progress.skipped = [*progress.skipped, [first, count]]
        self.snapshot = (tensors, progress.to_dict())
        self._write({"kind": "rollback", "step": first, "from": first + count, "loss": loss, "z": z})

    def _save(self) -> None:
        """Begins a checkpoint: of the last snapshot where there are any, since that is what a resumed run can go back
        to, else of the present."""
        if self.quarantine.found:
            name = "quarantine.jsonl" if self.ranks.is_first else f"quarantine-{self.ranks.rank}.jsonl"
            self.quarantine.save(self.directory / name)
        tensors, state = pack(self.objective, self.step.optimizer), self.progress.to_dict()
        if self.snapshot and self.progress.step < self.config.steps:
            tensors, state = self.snapshot
        best = int(self.progress.best[1]) if self.progress.best else None
        self.saver.save(tensors, state, best)

    def _publish(self, name: str, tensors: dict[str, Tensor]) -> None:
        partial = self.directory / f".{name}"
        save_file(tensors, partial, metadata={"isoflop": self.config.model.name})
        partial.replace(self.directory / name)

    def _status(self, state: str, **more: Any) -> None:
        if not self.ranks.is_first:
            return
        progress = self.progress
        try:
            write_status(
                self.directory,
                {
                    "state": state,
                    "step": progress.step,
                    "steps": self.config.steps,
                    "seconds": progress.seconds,
                    **more,
                },
            )
        except CheckpointError as error:
            if state != "running":
                raise
            warnings.warn(f"{error}; training goes on", stacklevel=2)

    def _end(self, state: str, error: str) -> RunResult:
        self._close_journal()
        self._status(state, heldout_loss=None, heldout_accuracy=None, error=error)
        return RunResult(state, self.progress.step, math.nan, math.nan, self.progress.seconds, error)

    def _close_journal(self) -> None:
        if self.journal:
            self.journal.close()
        if self.boards:
            self.boards.close()

    def _diverged(self, batch: Batch, what: str) -> RunResult:
        """Ends the run and leaves the evidence in `diverged.json`."""
        progress = self.progress
        self.saver.wait()
        if self.ranks.is_first:
            epochs, indices = self._consumed(batch)
            evidence = {
                "what": what,
                "step": progress.step,
                "learning_rate": self.config.optim.learning_rate,
                "recent_losses": progress.recent,
                "skipped": progress.skipped,
                "nonfinite": progress.nonfinite,
                "samples": [[int(e), int(i)] for e, i in zip(epochs, indices, strict=True)],
            }
            (self.directory / "diverged.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
        times = len(progress.skipped)
        after = f", after {times} rollbacks" if times else ""
        return self._end("diverged", f"{what}{after} (learning rate {self.config.optim.learning_rate:g})")

    def _preempted(self) -> RunResult:
        self.saver.wait()
        if self.saver.failure:
            raise CheckpointError(f"asked to stop, but {self.saver.failure}")
        return self._end("preempted", f"asked to stop at step {self.progress.step}")

    def _finish(self, row: Row) -> RunResult:
        self._close_journal()
        self.saver.wait()
        with self.step.shown_weights():
            named = self.objective.backbone.state_dict()
            weights = {n: whole(tensor).detach().to("cpu", copy=True).contiguous() for n, tensor in named.items()}
            others = {n: t for n, t in self.objective.state_dict().items() if not n.startswith("backbone.")}
            learnt_with = {n: whole(tensor).detach().to("cpu", copy=True).contiguous() for n, tensor in others.items()}
        if self.ranks.is_first:
            self._publish("model.safetensors", weights)
            if learnt_with:  # what the objective added to the backbone: a decoder
                self._publish("objective.safetensors", learnt_with)
        heldout = {"heldout_loss": row["heldout_loss"], "heldout_accuracy": row.get("heldout_accuracy")}
        self._status("done", **heldout, error="")
        return RunResult("done", self.progress.step, seconds=self.progress.seconds, **heldout)
