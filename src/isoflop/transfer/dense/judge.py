"""Evaluation of a backbone by detection or segmentation: a run for each seed, then average precision or mIoU.

Each run has its own folder and can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student

from isoflop.config import DenseTransferConfig, RunConfig, canonical_json, parse
from isoflop.data import Split, open_source, open_split
from isoflop.data.dense import DenseSource, Objects
from isoflop.errors import CheckpointError, DataError, ModelError
from isoflop.models.saved import Moments
from isoflop.objectives.dense.detector import Detector
from isoflop.objectives.dense.segmenter import Segmenter
from isoflop.runs.files import write_json
from isoflop.train import train
from isoflop.train.device import choose_device, to_device
from isoflop.train.identity import run_directory
from isoflop.train.loop import load_objective
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.dense.average_precision import average_precision, detect
from isoflop.transfer.dense.pictures import class_maps, confusion, intersection_over_union, save_pictures
from isoflop.transfer.finetune import merged, save_weights

Row = dict[str, Any]
LEVEL = 0.95
_LEARNT_FROM: tuple[Split, Split] = ("train", "heldout")
_MEASURES = {"detect": ("box_ap", "mask_ap"), "segment": ("miou",)}

_SHORT: dict[str, Any] = {
    "steps": 500,
    "batch_size": 8,
    "optim": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "clip": 1.0},
    "schedule": {"name": "constant", "warmup": 20, "cooldown": 0.8},
    "evaluation": {"batch_size": 8},
    "log_every": 20,
    "tensorboard": False,
}


def judge_dense(
    pretrained: Pretrained,
    config: DenseTransferConfig,
    name: str | None = None,
    *,
    folder: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Rows of `box_ap` and `mask_ap`, or of `miou`: mean over the seeds, standard deviation, and the `interval` of the
    mean by Student's t, None for a single seed; and of the first seed everything else that is measured.

    `folder` keeps the runs and what came of them. `tell` is called with lines of progress. Raises DataError, ModelError
    and ConfigError for what cannot be.
    """
    if pretrained.model.in_channels != 3:
        raise ModelError(
            f"{pretrained.name} takes images of {pretrained.model.in_channels} channels; pictures to detect and to "
            "segment in have 3"
        )
    outcomes = []
    weights = save_weights(pretrained, folder)
    for seed in config.seeds:
        run = run_config(pretrained, config, weights, seed)
        directory = run_directory(folder, config.protocol, run)
        who = f"{name or pretrained.name}, seed {seed}"
        outcomes.append(_outcome(run, directory, pretrained.moments, who, tell))
    rows = []
    for measure in _MEASURES[config.protocol]:
        values = [outcome[measure] for outcome in outcomes if outcome.get(measure) is not None]
        if values:
            rows.append(
                {
                    "name": name or pretrained.name,
                    "dataset": config.dataset,
                    "protocol": config.protocol,
                    "measure": measure,
                    "mean": fmean(values),
                    "std": stdev(values) if len(values) > 1 else None,
                    "interval": mean_interval(values),
                    "level": LEVEL,
                    "seeds": len(values),
                    "values": values,
                    "steps": outcomes[0]["steps"],
                    "seconds": sum(outcome["seconds"] for outcome in outcomes),
                    "first": outcomes[0],
                }
            )
    return rows


def run_config(pretrained: Pretrained, config: DenseTransferConfig, weights: Path, seed: int) -> RunConfig:
    """The run that trains `pretrained` on `config.dataset`; ConfigError for a value that cannot be."""
    objective: dict[str, Any] = {"name": config.protocol}
    if config.head:
        objective["head"] = config.head
    own = {
        "model": {"name": pretrained.preset, **pretrained.options},
        "start": {"weights": str(weights)},
        "seed": seed,
        "precision": "float32",  # scores are compared between machines
        "objective": objective,
        "data": {
            "source": config.dataset,
            "image_size": pretrained.model.image_size[0],
            "seed": seed,
            "heldout": config.heldout,
            "augment": "large_scale_jitter" if config.protocol == "detect" else "scale_crop",
        },
    }
    return parse(merged(merged(own, _SHORT), config.run), RunConfig, config.protocol)


def _outcome(
    run: RunConfig, directory: Path, moments: Moments | None, who: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    path = directory / "judged.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    tell(f"{who}: {run.steps} steps")
    learnt, heldout = (open_split(run.data, split).normalized_by(moments) for split in _LEARNT_FROM)
    result = train(
        run,
        directory,
        data=(learnt, heldout),
        on_row=lambda row: tell(f"{who}: step {row['step']} of {run.steps}, loss {row['loss']:.4f}"),
    )
    if result.state != "done":
        raise CheckpointError(f"{directory}: {result.error}")
    told = {
        **evaluate_run(run, directory, moments),
        "steps": run.steps,
        "seconds": result.seconds,
        "run": canonical_json(run),
    }
    write_json(path, told)
    return told


def evaluate_run(run: RunConfig, directory: Path, moments: Moments | None = None) -> dict[str, Any]:
    """Everything that is measured of a finished run on the test part of its data; leaves `pictures.png` there.

    `moments` are those by which its images were normalised, if not ImageNet's.
    """
    source, test = open_parts(run, moments)
    objective = load_objective(directory, source)
    device = choose_device(run.device)
    to_device(objective, device)
    records = test.records
    save_pictures(objective, test, directory / "pictures.png", device=device)
    if isinstance(objective, Detector):
        found = detect(objective, test, device=device, batch_size=run.evaluation.batch_size)
        truths = (records.truth(test.record(index)) for index in range(len(test)))
        pairs = ((one, truth) for one, truth in zip(found, truths, strict=True) if isinstance(truth, Objects))
        return average_precision(pairs, test.class_names, masks=objective.config.head == "mask_rcnn")
    assert isinstance(objective, Segmenter)
    counts = np.zeros((test.num_classes, test.num_classes), np.int64)
    for index, told in enumerate(class_maps(objective, test, device=device)):
        truth = records.truth(test.record(index))
        assert isinstance(truth, np.ndarray)
        counts += confusion(told, truth, test.num_classes)
    return intersection_over_union(counts, test.class_names)


def open_parts(run: RunConfig, moments: Moments | None = None) -> tuple[DenseSource, DenseSource]:
    """The training and the test part of a run's data. DataError where they do not have the same classes."""
    data = run.data
    parts = []
    splits: tuple[Split, Split] = ("train", "test")
    for part in splits:
        source = open_source(
            data.source,
            split=part,
            image_size=data.image_size,
            heldout=data.heldout,
            seed=data.seed,
        )
        if not isinstance(source, DenseSource):
            raise DataError(f"{data.source}: detection and segmentation need coco:, ade20k: or scenes")
        parts.append(source.normalized_by(moments))
    train_part, test_part = parts
    if train_part.class_names != test_part.class_names:
        raise DataError(f"{data.source}: the training and the test part have other classes")
    return train_part, test_part


def mean_interval(values: list[float]) -> tuple[float, float] | None:
    """Student's interval of a mean over seeds, at `LEVEL`; None for a single value."""
    if len(values) < 2:
        return None
    half = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half
