"""What a trained classifier says about image files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.config.nearest import nearest_path
from isoflop.data.decode import DamagedImage, centre_box_of, decode_crop, read_header
from isoflop.data.sources.folder import IMAGE_SUFFIXES
from isoflop.errors import CheckpointError, DataError, ModelError
from isoflop.train.data_facts import read_facts
from isoflop.train.device import choose_device, to_device
from isoflop.transfer.backbones import Pretrained, open_backbone

BATCH = 64
_WITHOUT_CLASSIFIER = {"masked": "by masking", "detect": "to detect", "segment": "to segment"}


@dataclass(frozen=True)
class Guess:
    """A class and its probability. `name` is its number where nobody knows names."""

    index: int
    name: str
    probability: float


@torch.no_grad()
def predict(
    checkpoint: str, images: Sequence[Path], *, top: int = 5, model: str | None = None
) -> Iterator[tuple[Path, list[Guess]]]:
    """Each image with its `top` classes, likeliest first.

    Args:
        checkpoint: what `open_backbone` takes, with a trained classifier.
        images: files, or folders of files. Of each the largest centred square is shown at the size of the model.
        model: the preset whose weights a `.safetensors` file holds.

    Raises CheckpointError for weights without a classifier, or that do not say how their images are normalised;
    DataError with the name of a file that is not there or no image.
    """
    pretrained, sigmoid = _classifier(checkpoint, model)
    net, files = pretrained.model, list(_files(images))
    if pretrained.moments is None:
        raise CheckpointError(f"{checkpoint} does not say by which mean and deviation its images are normalised")
    height, width = net.image_size
    if height != width:
        raise ModelError(f"{checkpoint} takes images of {height}×{width} pixels; only squares are cut out of files")
    device = choose_device("auto")
    net = to_device(net, device).eval()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in pretrained.moments)
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        pixels = torch.stack([_read(path, height, net.in_channels) for path in some])
        logits = net(((pixels.float() / 255 - mean) / std).to(device)).float().cpu()
        found = (logits.sigmoid() if sigmoid else logits.softmax(dim=1)).numpy()
        for path, row in zip(some, found, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            yield path, [Guess(int(k), _name(pretrained, int(k)), float(row[k])) for k in best]


def _classifier(checkpoint: str, model: str | None) -> tuple[Pretrained, bool]:
    """The checkpoint with what its data says of classes and pixels; whether each class has a probability of its own."""
    pretrained, folder = open_backbone(checkpoint, model=model), Path(checkpoint).expanduser()
    objective: dict[str, Any] = {}
    if pretrained.moments is None and (facts := read_facts(folder)) is not None:
        objective = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("objective") or {}
        pretrained = Pretrained(
            pretrained.model,
            pretrained.name,
            pretrained.preset,
            pretrained.options,
            (facts.mean, facts.std),
            facts.class_names,
        )
    if how := _WITHOUT_CLASSIFIER.get(objective.get("name", "")):
        raise CheckpointError(f"{checkpoint} was trained {how}, it has no classifier: fine-tune it first ([start])")
    return pretrained, objective.get("loss") == "sigmoid"


def _files(images: Sequence[Path]) -> Iterator[Path]:
    for path in images:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{path}: no images in this folder")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise DataError(f"{path}: no such file{nearest_path(path)}")


def _read(path: Path, size: int, channels: int) -> Tensor:
    """uint8 (channels, size, size)."""
    try:
        encoded = path.read_bytes()
        header = read_header(encoded)
        return decode_crop(encoded, header, centre_box_of(header, size), size=size, channels=channels)
    except DamagedImage as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def _name(pretrained: Pretrained, index: int) -> str:
    return pretrained.class_names[index] if index < len(pretrained.class_names) else str(index)
