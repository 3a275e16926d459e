"""What a backbone is worth on another task: its few-shot accuracies, beside the same backbone with random weights."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

import torch

from isoflop.config import TransferConfig
from isoflop.data import open_source
from isoflop.errors import DataError
from isoflop.models import Backbone
from isoflop.transfer.features import draw_shots, extract, read_all
from isoflop.transfer.few_shot import few_shot_accuracy
from isoflop.transfer.finetune import finetune_accuracy

Row = dict[str, Any]


def transfer(model: Backbone, config: TransferConfig, name: str) -> list[Row]:
    """The accuracies of `model` on `config.dataset`, a row per protocol: mean and standard deviation over the seeds."""
    size, channels = model.image_size[0], model.in_channels if model.in_channels in (1, 3) else None
    train = open_source(config.dataset, split="train", image_size=size, channels=channels)
    test = open_source(config.dataset, split="test", image_size=size, channels=channels)
    if train.channels != model.in_channels:
        raise DataError(
            f"{config.dataset}: its images have {train.channels} channels, "
            f"{model.preset} was trained on {model.in_channels}"
        )
    images, labels = read_all(train)
    test_images, test_labels = read_all(test)
    draws = {seed: torch.from_numpy(draw_shots(labels, train.num_classes, config.shots, seed)) for seed in config.seeds}
    accuracies: dict[str, list[float]] = {}
    if "ridge" in config.protocols:
        features, test_features = extract(model, images), extract(model, test_images)
        accuracies["ridge"] = [
            few_shot_accuracy(features[few], labels[few], test_features, test_labels, train.num_classes)
            for few in draws.values()
        ]
    if "finetune" in config.protocols:
        accuracies["finetune"] = [
            finetune_accuracy(
                model,
                images[few],
                labels[few],
                test_images,
                test_labels,
                train.num_classes,
                steps=config.finetune_steps,
                learning_rate=config.finetune_learning_rate,
                seed=seed,
            )
            for seed, few in draws.items()
        ]
    return [
        {
            "name": name,
            "protocol": protocol,
            "dataset": config.dataset,
            "shots": config.shots,
            "accuracy_mean": fmean(values),
            "accuracy_std": stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
        for protocol, values in accuracies.items()
    ]
