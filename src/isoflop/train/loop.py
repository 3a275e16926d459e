"""The training loop: one function that reads from top to bottom.

A run lives in a directory of its own: `config.json`, `env.json`, `status.json` (replaced atomically), `attempts/` (the
journal), `checkpoints/`, and at the end `model.safetensors`. Started again after whatever ended it, it goes on from the
last whole checkpoint and ends with the bits that an undisturbed run would have given (same machine, same threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from isoflop.config import RunConfig
from isoflop.data import Feed, Quarantine, Source, batches, open_split
from isoflop.errors import CheckpointError, DataError
from isoflop.models import Backbone, create_model
from isoflop.objectives import Objective, Supervised
from isoflop.train.checkpoints import checkpoint_path, latest_checkpoint, save_checkpoint
from isoflop.train.device import choose_device, to_device
from isoflop.train.evaluate import evaluate
from isoflop.train.journal import JournalWriter, Row, chain_samples
from isoflop.train.lock import sole_writer
from isoflop.train.ranks import Ranks
from isoflop.train.run_directory import claim, read_status, write_status
from isoflop.train.schedules import rate_factor, trunk_steps
from isoflop.train.start import replace_head, start_from
from isoflop.train.state import Progress, pack, unpack
from isoflop.train.step import Step
from isoflop.train.tensorboard import TensorBoardWriter

OnRow = Callable[[Row], None]


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `state` is "done" or "diverged"; losses in nats, `seconds` of training over all attempts."""

    state: str
    step: int
    heldout_loss: float
    heldout_accuracy: float
    seconds: float
    error: str = ""


def build_model(config: RunConfig, source: Source) -> Backbone:
    """The untrained backbone of `config` for the classes and channels of `source`; the seed decides its weights."""
    model = create_model(
        config.model.name,
        num_classes=source.num_classes,
        image_size=config.data.image_size,
        in_channels=source.channels,
        seed=config.seed,
        **config.model.overrides,
    )
    if config.start:
        replace_head(model, config.start)
    return model


def train(
    config: RunConfig,
    directory: Path,
    *,
    trunk: Path | None = None,
    on_row: OnRow | None = None,
    data: tuple[Source, Source] | None = None,
) -> RunResult:
    """Trains `config` in `directory`, or goes on where the last attempt ended; returns how it ended.

    Args:
        config: the whole run; its hash is the run's identity, and a directory belongs to one identity.
        directory: where everything about the run is written.
        trunk: a folder shared by runs that differ only in length. Steps that a shorter one has trained are taken from
            there instead of being trained again, and the last step before this run's cooldown is left there.
        on_row: called with each journal row.
        data: what to train on and what to hold out, in the place of what `config.data` names (a part of it, say).

    Raises ConfigError, DataError, ModelError before anything is written; CheckpointError when `directory` belongs to
    another run, is in use, or cannot be written.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    source, heldout = data or (open_split(config.data, "train"), open_split(config.data, "heldout"))
    objective = to_device(build_objective(config, source), device)
    with sole_writer(directory, CheckpointError):
        claim(config, directory, source)
        finished = read_status(directory)
        if finished.get("state") in ("done", "diverged"):
            return RunResult(**{name: finished[name] for name in RunResult.__dataclass_fields__})
        try:
            return _Run(config, directory, trunk, objective, source, heldout, device, on_row).train()
        except BrokenPipeError:  # whoever listens to `on_row` is gone
            raise
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory}: the storage failed: {' '.join(str(error).split())}") from error


def build_objective(config: RunConfig, source: Source) -> Objective:
    """What `config` trains: a backbone as it starts and how it learns. Raises DataError if it needs labels in vain."""
    mixes = config.data.mixup > 0 or config.data.cutmix > 0
    if not source.num_classes:
        what = "Mixup and CutMix mix labels" if mixes else "supervised training needs labels"
        raise DataError(f"{source.uri}: {what}, and these images have none")
    if source.num_classes == 1 and not source.has_several_labels:
        raise DataError(f"{source.uri}: every image is of the one class `{source.class_names[0]}`: nothing to learn")
    backbone = build_model(config, source)
    if config.start:
        start_from(backbone, config.start)
    return Supervised(
        backbone,
        label_smoothing=config.optim.label_smoothing,
        has_several_labels=source.has_several_labels,
    )


class _Run:
    """One attempt at a run: what stays the same through the loop, so that the loop itself reads plainly."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        trunk: Path | None,
        objective: Objective,
        source: Source,
        heldout: Source,
        device: torch.device,
        on_row: OnRow | None,
    ) -> None:
        self.config = config
        self.directory = directory
        self.trunk = trunk
        self.objective = objective
        self.source = source
        self.heldout = heldout
        self.device = device
        self.on_row = on_row
        self.ranks = Ranks(device)
        self.step = Step(objective, source, config, self.ranks)
        self.quarantine = Quarantine(len(source))
        self.progress = Progress()

    def train(self) -> RunResult:
        config, objective, step = self.config, self.objective, self.step
        fork = trunk_steps(config.schedule, config.steps)
        origin = self._restore(fork)
        progress = self.progress
        journal = JournalWriter(self.directory, progress.step, origin)
        board = TensorBoardWriter(self.directory / "tensorboard", progress.step) if config.tensorboard else None
        seconds_before, began = progress.seconds, time.perf_counter()
        saved_at = began
        self._status("running", {})

        prepared = batches(
            self.source,
            seed=config.data.seed,
            batch_size=config.batch_size,
            start_step=progress.step,
            stop_step=config.steps,
            augment=config.data.augment,
            workers=config.data.workers,
            quarantine=self.quarantine,
        )
        feed = Feed(prepared, self.device)
        objective.train()
        row: Row = {}
        for batch in feed:
            rate = config.optim.learning_rate * rate_factor(config.schedule, progress.step, config.steps)
            outcome = step(batch, rate)
            progress.loss_sum += outcome.loss
            progress.samples = chain_samples(progress.samples, batch.epochs, batch.indices)
            progress.step += 1
            now = time.perf_counter()
            progress.seconds = seconds_before + now - began
            if not outcome.updated:
                return self._diverged(journal)

            evaluate_now = progress.step == config.steps or (
                config.evaluation.every is not None and progress.step % config.evaluation.every == 0
            )
            if evaluate_now or progress.step % config.log_every == 0:
                row = self._row(rate)
                row["data_wait"] = round(feed.seconds_waiting / (now - began), 4)  # share of this attempt's time
                if evaluate_now:
                    row |= self._evaluate()
                journal.write(row)
                if board:
                    board.write(row)
                if self.on_row:
                    self.on_row(row)
            if self.trunk and progress.step == fork and not checkpoint_path(self.trunk, fork).exists():
                save_checkpoint(self.trunk, pack(objective, step.optimizer), progress.to_dict())
            if progress.step == config.steps or now - saved_at >= config.checkpoint.every_seconds:
                saved_at = now
                self._save()
                self._status("running", {})
        journal.close()
        if board:
            board.close()
        if not row.get("heldout_loss"):  # resumed after the last step: the journal has the row, this attempt has not
            row = row | self._evaluate()
        return self._finish(row)

    def _restore(self, fork: int) -> str:
        """Puts back the newest checkpoint, of this run or of its trunk; says which."""
        checkpoint, origin = latest_checkpoint(self.directory / "checkpoints"), "checkpoint"
        if checkpoint is None and self.trunk:
            checkpoint, origin = latest_checkpoint(self.trunk, at_most=fork), "trunk"
        if checkpoint is None:
            return "scratch"
        unpack(checkpoint.tensors, self.objective, self.step.optimizer)
        self.progress = Progress(**checkpoint.state)
        return origin

    def _row(self, learning_rate: float) -> Row:
        progress = self.progress
        row = {
            "kind": "train",
            "step": progress.step,
            "since": progress.since,
            "images": progress.step * self.config.batch_size,
            "samples": progress.samples,
            "loss": progress.loss_sum / (progress.step - progress.since),
            "lr": learning_rate,
            "seconds": round(progress.seconds, 4),
        }
        progress.since, progress.loss_sum = progress.step, 0.0
        return row

    def _evaluate(self) -> dict[str, float]:
        size = self.config.evaluation.batch_size
        return evaluate(
            self.objective, self.heldout, batch_size=size, ranks=self.ranks, precision=self.step.precision
        )

    def _save(self) -> None:
        if self.quarantine.found:
            self.quarantine.save(self.directory / "quarantine.jsonl")
        folder = self.directory / "checkpoints"
        save_checkpoint(
            folder, pack(self.objective, self.step.optimizer), self.progress.to_dict(), keep=self.config.checkpoint.keep
        )

    def _status(self, state: str, more: dict[str, Any]) -> None:
        write_status(
            self.directory,
            {
                "state": state,
                "step": self.progress.step,
                "steps": self.config.steps,
                "seconds": self.progress.seconds,
                **more,
            },
        )

    def _diverged(self, journal: JournalWriter) -> RunResult:
        error = (
            f"the loss was not finite at step {self.progress.step} (learning rate {self.config.optim.learning_rate:g})"
        )
        journal.close()
        result = RunResult("diverged", self.progress.step, math.nan, math.nan, self.progress.seconds, error)
        self._status("diverged", {"heldout_loss": None, "heldout_accuracy": None, "error": error})
        return result

    def _finish(self, row: Row) -> RunResult:
        weights = {name: t.detach().contiguous().cpu() for name, t in self.objective.backbone.state_dict().items()}
        partial = self.directory / ".model.safetensors"
        save_file(weights, partial, metadata={"isoflop": self.config.model.name})
        partial.replace(self.directory / "model.safetensors")
        heldout = {"heldout_loss": row["heldout_loss"], "heldout_accuracy": row["heldout_accuracy"]}
        self._status("done", {**heldout, "error": ""})
        return RunResult("done", self.progress.step, seconds=self.progress.seconds, **heldout)
