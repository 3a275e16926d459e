"""Evaluation of a backbone on another task: a row per protocol and number of shots, each accuracy with its interval.

A work item is one protocol with one number of shots and one seed. Its result is a file, and finished items are not
repeated. An interrupted evaluation resumes at the item, and a fine-tuning run at its last checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.config import Protocol, TransferConfig, canonical_json
from isoflop.errors import CheckpointError, DataNotice
from isoflop.escapes import markdown_text, printable
from isoflop.runs.files import write_json
from isoflop.train.probe import ridge_scores
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.features import features_of
from isoflop.transfer.few_shot import logistic_scores, neighbour_scores, probe_scores
from isoflop.transfer.finetune import PUBLISHED, Recipe, finetune, small
from isoflop.transfer.metrics import LEVEL, accuracy_interval, is_right, summary
from isoflop.transfer.predict import own_head
from isoflop.transfer.task import TransferTask, draw_shots, open_task

Row = dict[str, Any]
Tell = Callable[[str], None]

FEATURE_PROTOCOLS = ("ridge", "knn", "logistic", "probe")
CALIBRATED = ("logistic", "probe")  # and all fine-tuning: their scores are logits
WITHOUT_SEED = ("ridge", "knn")  # with all images, every seed gives the same


@dataclass(frozen=True)
class WorkItem:
    """One protocol with one number of labelled images a class (0 is all) and one seed."""

    protocol: Protocol
    shots: int
    seed: int

    def __str__(self) -> str:
        return f"{self.protocol}, {self.shots or 'all'} shots, seed {self.seed}"


def transfer(
    pretrained: Pretrained,
    config: TransferConfig,
    name: str | None = None,
    *,
    folder: Path | None = None,
    tell: Tell = lambda text: None,
) -> list[Row]:
    """The accuracies of `pretrained` on `config.dataset`: a row per protocol and number of shots.

    A row has the mean and standard deviation over the seeds, the bootstrap `interval` over test images and seeds, and
    of the first seed top-5, calibration error, accuracy per class and confusion. `folder` keeps what is done; without
    one nothing is kept but cached features. `tell` is called with lines of progress.

    Raises DataError for a task that cannot judge anything, ConfigError for a protocol that cannot be.
    """
    trained = config.model_copy(update={"protocols": tuple(p for p in config.protocols if p != "head")})
    rows = [own_head(pretrained, config.dataset, name)] if "head" in config.protocols else []
    if trained.protocols:
        rows += judge(pretrained, open_task(config.dataset, pretrained), trained, name, folder=folder, tell=tell)
    return rows


def judge(
    pretrained: Pretrained,
    task: TransferTask,
    config: TransferConfig,
    name: str | None = None,
    *,
    folder: Path | None = None,
    tell: Tell = lambda text: None,
) -> list[Row]:
    """`transfer` on a task that is open already."""
    units = units_of(config)
    _tell_few(task, units)  # before anything is computed
    with tempfile.TemporaryDirectory(prefix="isoflop-transfer-") as temporary:
        place = Path(temporary) if folder is None else _claimed(folder, pretrained, config, task)
        judging = _Judge(pretrained, task, config, place, tell)
        outcomes = {unit: judging.outcome(unit, number + 1, len(units)) for number, unit in enumerate(units)}
    groups = dict.fromkeys((unit.protocol, unit.shots) for unit in units)
    return [
        _row(
            name or pretrained.name, task, protocol, shots, [o for u, o in outcomes.items() if _is(u, protocol, shots)]
        )
        for protocol, shots in groups
    ]


def check_transfer(pretrained: Pretrained, config: TransferConfig) -> None:
    """Returns if `config` could be tried on `pretrained`: a task that can judge.

    Raises what `transfer` would, so that a study need not train for hours to be told. Nothing is computed.
    """
    trained = config.model_copy(update={"protocols": tuple(p for p in config.protocols if p != "head")})
    if trained.protocols:
        _tell_few(open_task(config.dataset, pretrained), units_of(trained))


def _tell_few(task: TransferTask, units: Sequence[WorkItem]) -> None:
    sizes = np.bincount(task.labels.numpy(), minlength=task.train.num_classes)
    most = max((unit.shots for unit in units), default=0)
    few = np.flatnonzero(sizes < most)
    if len(few):
        warnings.warn(
            f"{task.name}: {len(few)} of {len(sizes)} classes have fewer training images than {most} shots, "
            f"`{printable(task.train.class_names[few[0]])}` among them ({sizes[few[0]]}): these give what they have",
            DataNotice,
            stacklevel=1,
        )


def units_of(config: TransferConfig) -> list[WorkItem]:
    """All units of work; a closed form on all images has no use for more than one seed."""
    return [
        WorkItem(protocol, shots, seed)
        for protocol in config.protocols
        for shots in config.shots_of(protocol)
        for seed in (config.seeds[:1] if shots == 0 and protocol in WITHOUT_SEED else config.seeds)
    ]


class _Judge:
    """Makes the outcomes of units, features at most once."""

    def __init__(
        self, pretrained: Pretrained, task: TransferTask, config: TransferConfig, folder: Path, tell: Tell
    ) -> None:
        self.pretrained, self.task, self.config, self.folder, self.tell = pretrained, task, config, folder, tell
        self.test_labels = task.test.labels()
        self._features: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def outcome(self, unit: WorkItem, number: int, count: int) -> dict[str, Any]:
        """The JSON of a unit: from its file, or made and written there."""
        path = self.folder / "units" / f"{unit.protocol}-{unit.shots}-{unit.seed}.json"
        if kept := _kept(path):
            return kept
        began = time.perf_counter()
        scores, more = self._scores(unit)
        calibrated = unit.protocol in CALIBRATED or unit.protocol.startswith("finetune")
        right = is_right(scores, self.test_labels).numpy()
        made = {
            "seed": unit.seed,
            "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
            "seconds": round(time.perf_counter() - began, 3),
            **summary(scores, self.test_labels, calibrated=calibrated),
            **more,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made)
        self.tell(f"{number} of {count}: {unit}: accuracy {made['top1']:.4f}")
        return made

    def _scores(self, unit: WorkItem) -> tuple[Tensor, dict[str, Any]]:
        classes, protocol = self.task.train.num_classes, unit.protocol
        chosen = draw_shots(self.task.labels, classes, unit.shots, unit.seed)
        if protocol not in FEATURE_PROTOCOLS:
            return self._finetuned(unit, chosen)
        features, test = self._frozen(protocol)
        rows = torch.from_numpy(chosen)
        train, labels = (features, self.task.labels) if unit.shots == 0 else (features[rows], self.task.labels[rows])
        if protocol == "ridge":
            return ridge_scores(train, labels, test, classes), {}
        if protocol == "knn":
            return neighbour_scores(train, labels, test, classes), {}
        if protocol == "logistic":
            return logistic_scores(train, labels, test, classes, seed=unit.seed), {}
        return probe_scores(train, labels, test, classes, seed=unit.seed, epochs=self.config.probe_epochs), {}

    def _frozen(self, protocol: str) -> tuple[Tensor, Tensor]:
        """Features of the training and the test images, as the protocol shows them."""
        sources = self.task.train, self.task.test
        if protocol == "ridge":
            sources = sources[0].stretched(), sources[1].stretched()
        key = sources[0].fingerprint, sources[1].fingerprint
        if key not in self._features:
            train, test = (
                features_of(self.pretrained, source, workers=self.config.workers, on_progress=self._progress(part))
                for part, source in zip(("training", "test"), sources, strict=True)
            )
            self._features[key] = train, test
        return self._features[key]

    def _progress(self, part: str) -> Callable[[int, int], None]:
        told = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told > 5.0:
                told = time.monotonic()
                self.tell(f"features of {part} images: {done:,} of {total:,}")

        return on_progress

    def _finetuned(self, unit: WorkItem, chosen: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
        config, backbone = self.config, self.pretrained.model
        recipe: Recipe = (
            small(len(chosen), backbone, config.finetune_steps, config.finetune_learning_rate)
            if unit.protocol == "finetune"
            else PUBLISHED[unit.protocol.removeprefix("finetune_")](len(chosen), backbone)
        )
        if config.learning_rates is not None:
            recipe = replace(recipe, learning_rates=config.learning_rates)
        told = time.monotonic()

        def on_row(row: Row) -> None:
            nonlocal told
            if time.monotonic() - told > 5.0:
                told = time.monotonic()
                self.tell(f"{unit}: step {row['step']}, loss {row['loss']:.4f}")

        tuned = finetune(
            self.pretrained,
            self.task,
            chosen,
            recipe,
            self.folder / f"run-{unit.protocol}-{unit.shots}-{unit.seed}",
            seed=unit.seed,
            last_blocks=config.last_blocks,
            changes=config.run,
            on_row=on_row,
        )
        return tuned.scores, {"learning_rate": tuned.learning_rate, "steps": tuned.steps, "state": tuned.state}


def _row(name: str, task: TransferTask, protocol: str, shots: int, outcomes: list[dict[str, Any]]) -> Row:
    images = len(task.test)
    bits = [np.unpackbits(np.frombuffer(base64.b64decode(o["right"]), np.uint8), count=images) for o in outcomes]
    accuracies = [outcome["top1"] for outcome in outcomes]
    first = {key: value for key, value in outcomes[0].items() if key not in ("right", "seed", "seconds", "top1")}
    return {
        "name": name,
        "protocol": protocol,
        "dataset": task.name,
        "shots": shots,
        "accuracy_mean": fmean(accuracies),
        "accuracy_std": stdev(accuracies) if len(accuracies) > 1 else None,
        "interval": list(accuracy_interval(np.stack(bits).astype(bool))),
        "level": LEVEL,
        "seeds": len(outcomes),
        "test_images": images,
        "seconds": round(sum(outcome["seconds"] for outcome in outcomes), 3),
        **first,
    }


def _kept(path: Path) -> dict[str, Any] | None:
    """The outcome in a unit's file; None where there is none, or it is damaged and must be made again."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"right", "top1", "seconds"} <= set(found) else None


def _is(unit: WorkItem, protocol: str, shots: int) -> bool:
    return (unit.protocol, unit.shots) == (protocol, shots)


def _claimed(folder: Path, pretrained: Pretrained, config: TransferConfig, task: TransferTask) -> Path:
    """The subfolder of these weights, this task and this configuration."""
    what = repr((pretrained.fingerprint, task.train.fingerprint, task.test.fingerprint))
    shared = config.model_copy(update={"protocols": ("ridge",), "shots": None, "seeds": (0,)})
    digest = hashlib.blake2b((what + canonical_json(shared)).encode(), digest_size=6).hexdigest()
    try:
        (folder / digest).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write here: {error.strerror}") from error
    return folder / digest


# The result of an evaluation as JSON, and as rows of a Markdown table.


HEAD = "| backbone | data | protocol | shots | accuracy (%) | 95 % interval | seeds |\n|---|---|---|---|---|---|---|\n"


def write_result(folder: Path, checkpoint: str, config: TransferConfig, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `result.json` and `result.md` into `folder`; returns the path of the first."""
    document = {"checkpoint": checkpoint, "config": config.model_dump(mode="json"), "rows": list(rows)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", document)
        partial = folder / ".result.md"
        partial.write_text(markdown(rows), encoding="utf-8")
        partial.replace(folder / "result.md")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write here: {error.strerror}") from error
    return folder / "result.json"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line for each row of `transfer`."""
    return HEAD + "".join(markdown_row(row) for row in rows)


def markdown_row(row: Mapping[str, Any]) -> str:
    """One line of that table."""
    interval = f"{100 * row['interval'][0]:.1f} – {100 * row['interval'][1]:.1f}" if row.get("interval") else ""
    cells = (row["name"], row["dataset"], row["protocol"], row["shots"] or "all", f"{100 * row['accuracy_mean']:.1f}")
    text = (markdown_text(cell) for cell in (*cells, interval, row["seeds"]))
    return f"| {' | '.join(text)} |\n"
