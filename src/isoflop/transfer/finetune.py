"""Fine-tuning: runs that start from the backbone's weights, trained by the one loop, and so exactly resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.config import RunConfig, parse
from isoflop.data import Source, Subset
from isoflop.errors import ConfigError
from isoflop.models import Backbone
from isoflop.models.saved import metadata_of
from isoflop.runs.directory import published
from isoflop.runs.files import replacing
from isoflop.train import build_model, train
from isoflop.train.device import choose_device, to_device, to_unit_range
from isoflop.train.record import OnRow
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.recipes import Recipe, merged
from isoflop.transfer.task import Task

MOST_WATCHED = 1024  # test images that progress is shown on; nothing is chosen by them


@dataclass(frozen=True)
class Tuned:
    """Logits (m, classes) of the test images, and how they came about."""

    scores: Tensor
    learning_rate: float
    steps: int
    seconds: float
    state: str


def finetune(
    pretrained: Pretrained,
    task: Task,
    chosen: NDArray[np.int64],
    recipe: Recipe,
    folder: Path,
    *,
    seed: int,
    last_blocks: int | None = None,
    changes: dict[str, Any] | None = None,
    on_row: OnRow | None = None,
) -> Tuned:
    """Fine-tunes on the training images `chosen`; everything lies in `folder`, and what was interrupted goes on.

    `last_blocks` trains the classifier and that many blocks before it. `changes` are tables of a run that replace the
    recipe's. Where the recipe names several learning rates, each is tried, and that with the best accuracy on its
    held-out share of `chosen` is kept.
    """
    weights = save_weights(pretrained, folder.parent)
    fixed = "learning_rate" in (changes or {}).get("optim", {})
    rates = () if fixed else recipe.learning_rates

    def trained(part: NDArray[np.int64], watched: Source, rate: float | None, place: Path) -> tuple[float, Tuned]:
        own = merged(recipe.run, {"optim": {"learning_rate": rate}} if rate else {})
        tables = merged(own, changes or {})
        config = run_config(pretrained, task, tables, recipe.model, weights, seed=seed, last_blocks=last_blocks)
        result = train(config, place, data=(Subset(task.train, part), watched), on_row=on_row)
        done = result.state == "done"
        if done:
            scores = predict(_trained(config, task.train, place), task.test, config)
        else:  # diverged: it knows nothing
            scores = torch.zeros(len(task.test), task.train.num_classes)
        tuned = Tuned(scores, config.optim.learning_rate, config.steps, result.seconds, result.state)
        return (result.heldout_accuracy or 0.0) if done else -1.0, tuned

    if len(rates) < 2:
        return trained(chosen, _watched(task.test), rates[0] if rates else None, folder)[1]
    mixed, held = np.random.default_rng(seed).permutation(len(chosen)), max(1, int(recipe.held_out * len(chosen)))
    if held == len(chosen):
        raise ConfigError("fine-tuning cannot choose a learning rate on a single image: set run.optim.learning_rate")
    heldout = Subset(task.train, chosen[mixed[:held]])
    tried = [trained(chosen[mixed[held:]], heldout, rate, folder / f"rate-{rate:g}") for rate in rates]
    _, best = max(tried, key=lambda pair: pair[0])
    if recipe.retrain:
        return trained(chosen, _watched(task.test), best.learning_rate, folder / "all")[1]
    return best


def run_config(
    pretrained: Pretrained,
    task: Task,
    tables: dict[str, Any],
    model: dict[str, Any],
    weights: Path,
    *,
    seed: int,
    last_blocks: int | None,
) -> RunConfig:
    """The run that fine-tunes `pretrained` as `tables` say; ConfigError for a value that cannot be."""
    backbone = pretrained.model
    takes_drop_path = hasattr(getattr(backbone, "config", None), "drop_path")
    own = {
        "model": {"name": pretrained.preset, **pretrained.options, **(model if takes_drop_path else {})},
        "start": {"weights": str(weights)},
        "seed": seed,
        "data": {"source": task.name, "image_size": backbone.image_size[0], "seed": seed, "heldout": 1},
        "tensorboard": False,
        "log_every": 50,
    }
    if last_blocks is not None:
        own["optim"] = {"groups": groups_of_last_blocks(backbone, last_blocks)}
    return parse(merged(own, tables), RunConfig, "fine-tuning")


def groups_of_last_blocks(model: Backbone, blocks: int) -> dict[str, Any]:
    """Rules for an optimizer that freeze everything below the last `blocks` blocks; ConfigError if there are fewer."""
    layers = model.layer_ids()
    depth = max(layers.values()) - 1
    if blocks > depth:
        raise ConfigError(f"last_blocks = {blocks}, but {model.preset} has {depth} blocks")
    frozen = [name for name, layer in layers.items() if layer <= depth - blocks]
    rest = [name for name, layer in layers.items() if layer > depth - blocks]
    return {"frozen": {"parameters": frozen, "freeze": True}, "trained": {"parameters": [*rest, "head.*"]}}


def save_weights(pretrained: Pretrained, folder: Path) -> Path:
    """The weights as a file from which runs start, named after its content."""
    path = folder / f"weights-{pretrained.fingerprint[:12]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: t.detach().contiguous().cpu().clone() for name, t in pretrained.model.state_dict().items()}
        with replacing(path) as partial:
            save_file(state, partial, metadata=metadata_of(pretrained.preset, pretrained.model.revision))
    return path


@torch.no_grad()
def predict(model: Backbone, source: Source, config: RunConfig) -> Tensor:
    """Logits float32 (N, classes) of all images of `source`."""
    device = choose_device(config.device)
    model = to_device(model, device).eval()
    size = config.evaluation.batch_size
    parts = []
    for start in range(0, len(source), size):
        images, _ = source.read(np.arange(start, min(start + size, len(source)), dtype=np.int64))
        parts.append(model(to_unit_range(images, source, device)).float().cpu())
    return torch.cat(parts)


def _watched(test: Source) -> Source:
    return Subset(test, np.linspace(0, len(test) - 1, min(len(test), MOST_WATCHED)).astype(np.int64))


def _trained(config: RunConfig, source: Source, directory: Path) -> Backbone:
    model = build_model(config, source)
    model.load_state_dict(load_file(published(directory)))
    return model
