"""Training of a run, on one or several processes.

A run has its own directory: `config.json`, `env.json`, `status.json` (replaced atomically), `attempts/` (the journal),
`checkpoints/`, and at the end `model.safetensors`. A run that is started again resumes from the last valid checkpoint
and ends with the same bits as an uninterrupted run (same machine, same threads).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from isoflop.config import (
    DetectConfig,
    DistilledConfig,
    Loaded,
    RunConfig,
    SegmentConfig,
    StartConfig,
    UnlabelledConfig,
    plain,
    stored_run,
)
from isoflop.data import Source, batches, check_augmentation, open_split
from isoflop.errors import CheckpointError, ConfigError, DataError, IsoflopError, said_of
from isoflop.models import Backbone, create_model
from isoflop.models.interop import read_tensors
from isoflop.models.mup import scale_start
from isoflop.models.user_code import check_stored
from isoflop.objectives import Objective, make_objective
from isoflop.objectives.build import check_fit
from isoflop.runs.directory import WEIGHTS, RunIdentity, Status, published, read_status, write_status
from isoflop.runs.files import read_json, remove_partial_files
from isoflop.runs.lock import sole_writer
from isoflop.train.attempt import Attempt, RunResult
from isoflop.train.device import FASTER, choose_device, choose_precision, to_device, warn_of_slow_precision
from isoflop.train.identity import Shape, begun_precision, check_classes, claim_run, has_classifier, learnt_classes
from isoflop.train.layout import build_and_arrange
from isoflop.train.optim import freeze
from isoflop.train.ranks import Ranks, check_parts, joined
from isoflop.train.record import OnRow
from isoflop.train.start import replace_head, start_from
from isoflop.train.step import Step


def build_model(config: RunConfig, source: Shape) -> Backbone:
    """The untrained backbone of `config` for the classes and channels of `source`; the seed decides its weights."""
    model = create_model(
        config.model.name,
        num_classes=source.num_classes or 1,  # of images without labels, nothing is ever classified
        image_size=config.data.image_size,
        in_channels=source.channels,
        seed=config.seed,
        **config.model.overrides,
    )
    if config.optim.mup:
        scale_start(model, config.optim.mup)
    if config.start:
        replace_head(model, config.start)
    return model


def train(
    config: RunConfig | Loaded[RunConfig],
    directory: Path | str,
    *,
    trunk: Path | None = None,
    on_row: OnRow | None = None,
    data: tuple[Source, Source] | None = None,
    stop: Callable[[], bool] = lambda: False,
    ends_when_stuck: bool = False,
) -> RunResult:
    """Trains `config` in `directory`, or goes on where the last attempt ended; returns how it ended.

    Under torchrun, every process calls it alike; rank 0 writes, and all get the same result.

    Args:
        config: the whole run; its hash is the run's identity, and a directory belongs to one identity.
        directory: where everything about the run is written; on storage that all processes share.
        trunk: a folder shared by runs that differ only in length. Steps that a shorter one has trained are taken from
            there instead of being trained again, and the last step before this run's cooldown is left there.
        on_row: called with each journal row, by rank 0.
        data: what to train on and what to hold out, in the place of what `config.data` names (a part of it, say).
        stop: asked at every step; once it says yes on any rank, all save a checkpoint and end as "preempted".
        ends_when_stuck: whether a process that makes no step for `guards.stuck_seconds` ends itself, since somebody
            starts it again. Of several processes, each does.

    What `[pretraining]` says is trained first, as a run of its own in `directory/pretraining`; its rows reach `on_row`
    with a "phase".

    Raises ConfigError, DataError, ModelError before anything is written; CheckpointError when `directory` belongs to
    another run, is in use, or cannot be written.
    """
    config, directory = plain(config), Path(directory)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    source, heldout = data or (open_split(config.data, "train"), open_split(config.data, "heldout"))
    with joined(device) as ranks, ExitStack() as held:
        check_parts(config.batch_size, ranks)
        asked = config
        config = ranks.first_does(lambda: resolve_precision(asked, source, directory, ranks.world)[0])
        objective = build_and_arrange(lambda: build_objective(config, source), config, ranks)
        first = _Pretraining(config, directory, (source, heldout), ranks) if config.pretraining else None
        identity, finished, heals = ranks.first_does(lambda: _claim(config, directory, source, held))
        if finished:
            return finished
        if first:
            del objective  # built to be checked: its memory is that of the pretraining meanwhile
            ended = first.train(on_row, stop, ends_when_stuck)
            if ended.state != "done":
                return first.end(ended)
            objective = build_and_arrange(lambda: build_objective(first.pretrained, source), config, ranks)
        attempt = Attempt(
            config,
            directory,
            trunk=trunk,
            objective=objective,
            source=source,
            heldout=heldout,
            ranks=ranks,
            on_row=on_row,
            stop=stop,
            identity=identity,
            ends_when_stuck=ends_when_stuck,
            heals=heals,
            seconds_before=ended.seconds if first else 0.0,
        )
        held.callback(attempt.close)
        try:
            return attempt.train()
        except ValueError as error:  # of BatchNorm, which alone knows how large its maps are
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"BatchNorm has one value of a channel to average: `batch_size` of 2 or more ({error})"
            ) from error
        except BrokenPipeError:  # whoever listens to `on_row` is gone
            raise
        except (OSError, SafetensorError) as error:
            raise _named(error, directory) from error


# What a run learns first.


PRETRAINING = "pretraining"
"""The folder, in that of a run, of the run that trains its `[pretraining]`."""


class _Pretraining:
    """The first run of `config`, checked before anything is written."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        data: tuple[Source, Source],
        ranks: Ranks,
    ) -> None:
        self.ranks, self.directory, self.steps = ranks, directory, config.steps
        self.config = config.pretraining_run()
        weights = str(directory / PRETRAINING)
        start = config.start.model_copy(update={"weights": weights}) if config.start else StartConfig(weights=weights)
        self.pretrained = config.model_copy(update={"start": start})
        """`config`, from the weights that this leaves."""
        with said_of("[pretraining]"):
            self.data = pretraining_data(config, data)
            build_and_arrange(lambda: build_objective(self.config, self.data[0]), self.config, ranks)

    def train(self, on_row: OnRow | None, stop: Callable[[], bool], ends_when_stuck: bool) -> RunResult:
        """Trains it, or goes on; how it ended."""
        if self.ranks.is_first and not (self.directory / "status.json").exists():
            write_status(self.directory, Status("running", 0, self.steps, 0.0))
        return train(
            self.config,
            self.directory / PRETRAINING,
            on_row=(lambda row: on_row({**row, "phase": PRETRAINING})) if on_row else None,
            data=self.data,
            stop=stop,
            ends_when_stuck=ends_when_stuck,
        )

    def end(self, result: RunResult) -> RunResult:
        """Commits that the whole run has ended as its pretraining did, before its own first step."""
        error = f"{PRETRAINING}: {result.error}"
        status = Status(result.state, 0, self.steps, result.seconds, error=error)
        if self.ranks.is_first:
            write_status(self.directory, status)
        return RunResult.of(status)


def pretraining_data(config: RunConfig, data: tuple[Source, Source]) -> tuple[Source, Source]:
    """What the `[pretraining]` of a run on `data` trains on and holds out: other images where it names them, else
    `data`. DataError where they have other channels."""
    if config.pretraining and config.pretraining.images_of(config.data) == config.data:
        return data
    first = config.pretraining_run().data
    found = open_split(first, "train"), open_split(first, "heldout")
    if found[0].channels != data[0].channels:
        raise DataError(f"{first.source}: {found[0].channels} channels, and {data[0].uri} has {data[0].channels}")
    return found


# In which precision a run trains that leaves it open.


TIMED_STEPS = 3


def seconds_per_image(config: RunConfig, source: Source) -> float:
    """Seconds of training on an image, from a few steps on this machine: of processor time on a CPU, which other work
    on the machine does not lengthen. What a run learns first is a part of it."""
    if config.pretraining:
        first = config.pretraining_run()
        with said_of("[pretraining]"):
            images = pretraining_data(config, (source, source))[0]
        before = seconds_per_image(first, images) * first.steps / config.steps
        return before + seconds_per_image(config.model_copy(update={"pretraining": None}), source)
    device = choose_device(config.device)
    objective = to_device(build_objective(config, source), device)
    step = Step(objective, source, config, Ranks(device))
    seconds = []
    feed = batches(
        source,
        seed=0,
        batch_size=config.batch_size,
        start_step=0,
        stop_step=TIMED_STEPS + 1,
        augment=config.data.augment,
        randaugment=config.data.randaugment,
        interpolation=config.data.interpolation,
        workers=0,
    )
    began = _now(device)
    for batch in feed:
        step(batch, config.optim.learning_rate)
        now = _now(device)
        seconds.append(now - began)
        began = now
    return min(seconds[1:]) / config.batch_size  # the first step pays for warming up


LATENCY_REPEATS = 10


@torch.inference_mode()
def latency_ms(config: RunConfig, source: Shape) -> float:
    """Milliseconds in which the untrained backbone of `config` sees one image on this machine: the least of a few."""
    device = choose_device(config.device)
    model = to_device(build_model(config, source), device).eval()
    image = torch.zeros(1, model.in_channels, *model.image_size, device=device)
    seconds = []
    for _ in range(LATENCY_REPEATS):
        began = _now(device)
        model(image)
        seconds.append(_now(device) - began)
    return 1000 * min(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def resolve_precision(
    config: RunConfig, source: Source, directory: Path | None = None, parts: int = 1
) -> tuple[RunConfig, str]:
    """`config` with the precision that "auto" stands for, and why.

    It is that of the run that was begun in `directory`, if one was; else what trains faster on this machine. One of
    `parts` of a batch is timed, of 64 images at most; weights that are sharded are not timed, but in bfloat16 where the
    device has it.
    """
    device = choose_device(config.device)
    known: str = config.precision
    why = "as configured"
    if directory and known == "auto" and (begun := begun_precision(config, directory)):
        known, why = begun, "as the run was begun"
    if known != "auto":
        warn_of_slow_precision(known, device)
        return config.model_copy(update={"precision": known}), why
    at_a_time = min(config.batch_size // parts, config.parallel.device_batch_size or 64, 64)
    timed = {"batch_size": max(at_a_time, 2), "parallel": type(config.parallel)()}

    def seconds(precision: str) -> float:
        if config.parallel.sharding != "none":
            return 1.0 if precision == "float32" else 1 / FASTER
        return seconds_per_image(config.model_copy(update={**timed, "precision": precision}), source)

    name, why = choose_precision(device, seconds)
    return config.model_copy(update={"precision": name}), why


def _named(error: OSError | SafetensorError, directory: Path) -> IsoflopError:
    """What failed, by its own path: the run's storage, or something else."""
    why = " ".join(str(error).split())
    if not isinstance(error, OSError) or not error.filename:
        return CheckpointError(f"{directory}: the storage failed, or that of the data: {why}")
    path = Path(os.fsdecode(error.filename)).absolute()
    if path.is_relative_to(directory.absolute()):
        return CheckpointError(f"{path}: the storage failed: {error.strerror}")
    return DataError(f"{path}: {error.strerror}")


def _claim(
    config: RunConfig, directory: Path, source: Source, held: ExitStack
) -> tuple[RunIdentity, RunResult | None, bool]:
    """Takes `directory` for this run until `held` is left; the result, if the run has ended already; and whether it had
    ended, but what it left is damaged."""
    held.enter_context(sole_writer(directory, CheckpointError))
    identity = claim_run(config, directory, source)
    remove_partial_files(directory)
    try:
        status = read_status(directory)
    except CheckpointError as error:
        warnings.warn(f"{error}; it is written again from the last checkpoint", stacklevel=2)
        return identity, None, (directory / WEIGHTS).exists()
    if status is None or not status.is_over:
        return identity, None, False
    if not _is_whole(directory, status):
        return identity, None, True
    return identity, RunResult.of(status), False


def _is_whole(directory: Path, status: Status) -> bool:
    """Whether what a run has published is as it was written. If not, the run publishes it again, from its
    checkpoint."""
    try:
        for name in status.files or ([WEIGHTS] if status.state == "done" else []):
            with safe_open(published(directory, name), "pt"):  # earlier versions leave no hash
                pass
    except (CheckpointError, SafetensorError) as error:
        told = " ".join(str(error).split())
        warnings.warn(f"{directory}: {told}; it is published again from the last checkpoint", stacklevel=2)
        return False
    return True


def build_objective(config: RunConfig, source: Source) -> Objective:
    """What `config` trains: a backbone as it starts and how it learns. Raises DataError if it needs labels in vain."""
    mixes = config.data.mixup > 0 or config.data.cutmix > 0
    needs_labels = not isinstance(config.objective, UnlabelledConfig | DetectConfig | SegmentConfig)
    check_fit(config.objective, source, mixes=mixes)
    check_augmentation(source, config.data)
    if not source.num_classes and (mixes or needs_labels):
        what = "Mixup and CutMix mix labels" if mixes else f"{config.objective.name} training needs labels"
        raise DataError(f"{source.uri}: {what}, and these images have none")
    if source.num_classes == 1 and not source.has_several_labels and needs_labels:
        raise DataError(
            f"{source.uri}: every image is of the same class `{source.class_names[0]}`: there is nothing to learn"
        )
    if config.data.num_classes not in (None, source.num_classes):
        raise DataError(
            f"{source.uri}: {source.num_classes} classes, but `data.num_classes` = {config.data.num_classes}"
        )
    if isinstance(config.objective, DistilledConfig):
        teacher = config.objective.teacher
        learnt = learnt_classes(config.objective.teacher_weights or teacher)
        check_classes(f"`objective.teacher` = {teacher}", learnt, source)
    if config.start and config.start.head == "keep":
        if needs_labels and not has_classifier(config.start.weights):
            raise ConfigError(
                f"`start.head` = keep, but {config.start.weights} has learnt without labels, so that its classifier "
                "knows nothing: take `new`"
            )
        check_classes(f"`start.weights` = {config.start.weights}", learnt_classes(config.start.weights), source)
    backbone = build_model(config, source)
    if config.start:
        start_from(backbone, config.start)
    objective = make_objective(
        config.objective,
        backbone,
        seed=config.seed,
        label_smoothing=config.optim.label_smoothing,
        has_several_labels=source.has_several_labels,
        moments=(tuple(map(float, source.mean)), tuple(map(float, source.std))),
    )
    freeze(objective, config.optim)
    objective.calibrates = config.evaluation.calibrate
    if config.start and config.start.freeze_batchnorm:
        objective.freezes_batchnorm = True
        objective.train()
    return objective


# What a finished run has trained, all of it: the backbone and what its objective learned with.


def load_objective(run_directory: Path, source: Source) -> Objective:
    """The trained objective of the finished run in `run_directory`, which was trained on `source`; see `open_split`.

    Raises CheckpointError when the folder is not a finished run or its weights do not fit its configuration.
    """
    backbone, rest = published(run_directory), run_directory / "objective.safetensors"
    try:
        config = stored_run(read_json(run_directory / "config.json")).as_trained()
        check_stored(config.model.code, run_directory)
        if isinstance(config.objective, DistilledConfig):
            raise CheckpointError("a teacher is not among the weights of a distilled run; its backbone is")
        objective = build_objective(config.model_copy(update={"start": None}), source)
        weights = {f"backbone.{name}": tensor for name, tensor in read_tensors(backbone).items()}
        weights |= read_tensors(published(run_directory, rest.name)) if rest.is_file() else {}
        objective.load_state_dict(weights)
    except (OSError, ValueError, SafetensorError, RuntimeError, IsoflopError) as error:
        raise CheckpointError(f"{run_directory}: not readable: {' '.join(str(error).split())}") from error
    return objective
