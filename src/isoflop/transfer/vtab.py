"""VTAB-1k: nineteen tasks in three groups, with a thousand training images each (arXiv 1910.04867).

`vtab:FOLDER` has a subfolder per task, with images (`train/CLASS/…`, `test/CLASS/…`), Parquet files in the layout of
Hugging Face, or tar shards; `vtab:hf:ORG/{task}` fetches Parquet files by name from the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from isoflop.config import TransferConfig
from isoflop.data import derive_key
from isoflop.errors import ConfigError, DataError
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.protocols import Tell, judge
from isoflop.transfer.task import TransferTask, open_task

PREFIX = "vtab:"
TRAINING_IMAGES = 1000


@dataclass(frozen=True)
class VtabTask:
    """A task by the name that its folder must have."""

    name: str
    group: str
    classes: int


TASKS = (
    VtabTask("caltech101", "natural", 102),
    VtabTask("cifar100", "natural", 100),
    VtabTask("dtd", "natural", 47),
    VtabTask("flowers102", "natural", 102),
    VtabTask("pets", "natural", 37),
    VtabTask("svhn", "natural", 10),
    VtabTask("sun397", "natural", 397),
    VtabTask("patch_camelyon", "specialised", 2),
    VtabTask("eurosat", "specialised", 10),
    VtabTask("resisc45", "specialised", 45),
    VtabTask("retinopathy", "specialised", 5),
    VtabTask("clevr_count", "structured", 8),
    VtabTask("clevr_distance", "structured", 6),
    VtabTask("dmlab", "structured", 6),
    VtabTask("kitti_distance", "structured", 4),
    VtabTask("dsprites_location", "structured", 16),
    VtabTask("dsprites_orientation", "structured", 16),
    VtabTask("smallnorb_azimuth", "structured", 18),
    VtabTask("smallnorb_elevation", "structured", 9),
)
GROUPS = tuple(dict.fromkeys(task.group for task in TASKS))


def is_vtab(dataset: str) -> bool:
    """Whether a task is named as this module's first lines say."""
    return dataset.startswith(PREFIX)


def vtab(
    pretrained: Pretrained,
    config: TransferConfig,
    name: str | None = None,
    *,
    folder: Path | None = None,
    tell: Tell = lambda text: None,
) -> list[dict[str, Any]]:
    """The rows of every task that is there, as `transfer` gives them, and per protocol the means of groups and of all.

    Each task has 1,000 training images: those that are there, or as many drawn from more, the same for every seed. If
    fine-tuning chooses among learning rates, it does so on 200 of them and trains on all. DataError when no task is
    there, or one has another number of classes.
    """
    if "head" in config.protocols:
        raise ConfigError("protocol `head` tries a classifier on its own classes, which are none of VTAB's tasks'")
    rows: list[dict[str, Any]] = []
    all_images = config if config.shots is not None else config.model_copy(update={"shots": (0,)})
    for spec, uri in sources(config.dataset):
        task = thousand(replace(open_task(uri, pretrained), name=f"VTAB {spec.name}"), spec)
        tell(f"VTAB {spec.name}, {spec.group}")
        rows += judge(pretrained, task, all_images, name, folder=folder, tell=tell)
    return rows + means(rows)


def sources(dataset: str) -> list[tuple[VtabTask, str]]:
    """The tasks that `dataset` has, each with the source to open."""
    place = dataset.removeprefix(PREFIX)
    if "{task}" in place:
        return [(task, place.replace("{task}", task.name)) for task in TASKS]
    root = Path(place).expanduser()
    if not root.is_dir():
        raise DataError(f"{dataset}: no such folder")
    found = [(task, _source(root / task.name)) for task in TASKS if (root / task.name).is_dir()]
    if not found:
        raise DataError(f"{dataset}: no task there; expected subfolders named {', '.join(t.name for t in TASKS)}")
    return found


def thousand(task: TransferTask, spec: VtabTask) -> TransferTask:
    """`task` with a thousand training images."""
    if task.train.num_classes != spec.classes:
        raise DataError(f"{task.name}: {task.train.num_classes} classes, where VTAB has {spec.classes}")
    if len(task.train) < TRAINING_IMAGES:
        raise DataError(f"{task.name}: {len(task.train)} training images, where VTAB-1k has {TRAINING_IMAGES}")
    if len(task.train) == TRAINING_IMAGES:
        return task
    generator = np.random.default_rng(derive_key("vtab-1k", spec.name))
    chosen = np.sort(generator.permutation(len(task.train))[:TRAINING_IMAGES]).astype(np.int64)
    return replace(task, train=task.train.subset(chosen), labels=task.labels[torch.from_numpy(chosen)])


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the mean accuracy per group and over all tasks, for each protocol; tasks are independent samples."""
    groups = {task.name: task.group for task in TASKS}
    found = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        own = [row for row in rows if row["protocol"] == protocol]
        for group in (*GROUPS, "all"):
            part = [row for row in own if group in (groups[row["dataset"].removeprefix("VTAB ")], "all")]
            if not part:
                continue
            total = sum(1 for task in TASKS if group in (task.group, "all"))
            mean = fmean(row["accuracy_mean"] for row in part)
            half = sum(((row["interval"][1] - row["interval"][0]) / 2) ** 2 for row in part) ** 0.5 / len(part)
            found.append(
                {
                    **{key: part[0][key] for key in ("name", "protocol", "shots", "seeds", "level")},
                    "dataset": f"VTAB mean, {group}, {len(part)} of {total} tasks",
                    "accuracy_mean": mean,
                    "accuracy_std": None,
                    "interval": [max(0.0, mean - half), min(1.0, mean + half)],
                }
            )
    return found


def _source(folder: Path) -> str:
    if any(folder.rglob("*.parquet")):
        return f"parquet:{folder}"
    if any(folder.rglob("*.tar")):
        return f"shards:{folder}"
    return f"folder:{folder}"
