"""Fine-tuning: normal runs that start from the weights of the backbone, and are exactly resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.config import RunConfig, parse
from isoflop.data import Source
from isoflop.errors import ConfigError
from isoflop.models import Backbone
from isoflop.models.layers import SINCOS
from isoflop.models.saved import metadata_of
from isoflop.runs.directory import published
from isoflop.runs.files import replacing
from isoflop.train import build_model, train
from isoflop.train.device import choose_device, normalize, to_device
from isoflop.train.record import OnRow
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.task import TransferTask

# Published fine-tuning protocols as tables of a run: what a paper says, for the data and the backbone at hand.


Run = dict[str, Any]

SMALL_BATCH = 256


@dataclass(frozen=True)
class Recipe:
    """A run's tables; `learning_rates` to choose from on `held_out`, a share of the training images, if several.

    With `retrain`, the chosen rate is then trained on all images; without, the run that was best is kept.
    """

    run: Run
    learning_rates: tuple[float, ...] = ()
    held_out: float = 0.02
    retrain: bool = False
    model: Run = field(default_factory=dict)


def small(images: int, backbone: Backbone, steps: int, learning_rate: float) -> Recipe:
    """A few steps of AdamW on few images: rate falling linearly to zero, no augmentation."""
    return Recipe(
        {
            "steps": steps,
            "batch_size": min(images, SMALL_BATCH),
            "optim": {"name": "adamw", "weight_decay": 0.05, "clip": 1.0, "learning_rate": learning_rate},
            "schedule": {"name": "constant", "cooldown": 1.0},
        }
    )


def vit(images: int, backbone: Backbone) -> Recipe:
    """Fine-tuning of arXiv 2010.11929 and 2106.04560: SGD, batch 512, 20,000 steps; the rate chosen on 2 %."""
    return Recipe(
        {
            "steps": 20_000,
            "batch_size": 512,
            "data": {"augment": "crop_flip"},
            "optim": {
                "name": "sgd",
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,
                "clip": 1.0,
                "learning_rate": 0.03,
            },
            "schedule": {"name": "cosine", "warmup": 500},
        },
        learning_rates=(0.03, 0.01),
    )


def vtab(images: int, backbone: Backbone) -> Recipe:
    """VTAB-1k of arXiv 2106.04560: one setting for all tasks, 2,500 steps at rate 0.01."""
    run = vit(images, backbone).run
    return Recipe(
        {
            **run,
            "steps": 2_500,
            "data": {},
            "optim": {**run["optim"], "learning_rate": 0.01},
            "schedule": {"name": "cosine", "warmup": 200},
        },
        held_out=0.2,
        retrain=True,
    )


def bit(images: int, backbone: Backbone) -> Recipe:
    """BiT-HyperRule (arXiv 1912.11370, section 3.3): the number of images decides steps and Mixup."""
    if images < 20_000:
        steps, warmup, drops = 500, 100, (0.4, 0.6, 0.8)
    elif images < 500_000:
        steps, warmup, drops = 10_000, 500, (0.3, 0.6, 0.9)
    else:
        steps, warmup, drops = 20_000, 500, (0.3, 0.6, 0.9)
    return Recipe(
        {
            "steps": steps,
            "batch_size": 512,
            "data": {"augment": "crop_flip", "mixup": 0.1 if images >= 20_000 else 0.0},
            "optim": {
                "name": "sgd",
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,
                "clip": "none",
                "learning_rate": 0.003,
            },
            "schedule": {"name": "steps", "warmup": warmup, "drops": drops},
        }
    )


# from this width on: epochs, rate at batch 256, layer decay, drop path (arXiv 2111.06377, table 9)
_MAE = ((1280, (50, 1e-3, 0.75, 0.3)), (1024, (50, 1e-3, 0.75, 0.2)), (0, (100, 5e-4, 0.65, 0.1)))


def mae(images: int, backbone: Backbone) -> Recipe:
    """End-to-end fine-tuning of the masked autoencoders (arXiv 2111.06377, table 9): AdamW with layer decay."""
    epochs, rate, decay, drop_path = next(row for width, row in _MAE if backbone.num_features >= width)
    batch = min(1024, images)
    has_sines = getattr(getattr(backbone, "config", None), "positions", None) in SINCOS  # trained from here on
    return Recipe(
        {
            "steps": max(1, round(epochs * images / batch)),
            "batch_size": batch,
            "data": {"augment": "deit", "interpolation": "bicubic", "mixup": 0.8, "cutmix": 1.0},
            "optim": {
                "name": "adamw",
                "betas": (0.9, 0.999),
                "weight_decay": 0.05,
                "layer_decay": decay,
                "label_smoothing": 0.1,
                "clip": "none",
                "learning_rate": rate * batch / 256,
            },
            "schedule": {"name": "cosine", "warmup": round(5 * images / batch), "floor": 1e-6 / (rate * batch / 256)},
        },
        model={"drop_path": drop_path, **({"positions": "learned"} if has_sines else {})},
    )


def nfnet(images: int, backbone: Backbone) -> Recipe:
    """Fine-tuning of arXiv 2310.16764 (50 epochs with SAM); what it leaves open is of arXiv 2102.06171, A.1 and A.5.

    There, 15,000 steps of 2,048 images, 5,000 of them warm-up, take 24 epochs; the share is kept. NFNets lose a quarter
    of their last features on the way (dropout) and up to a tenth of their blocks; what that is of other families is
    theirs.
    """
    batch = min(2048, images)
    steps = max(1, round(50 * images / batch))
    is_nfnet = backbone.preset.startswith("nfnet")
    return Recipe(
        {
            "steps": steps,
            "batch_size": batch,
            "data": {"augment": "crop_flip"},
            "optim": {
                "name": "sgd",
                "momentum": 0.9,
                "weight_decay": 1e-5,
                "agc": 0.01,
                "clip": "none",
                "sam": 0.05,
                "label_smoothing": 0.1,
                "average": 0.9999,
                "learning_rate": 0.1,
            },
            "schedule": {"name": "cosine", "warmup": steps // 3},
        },
        model={"drop_path": 0.1, **({"dropout": 0.25} if is_nfnet else {})},
    )


PUBLISHED: dict[str, Callable[[int, Backbone], Recipe]] = {
    "vit": vit,
    "bit": bit,
    "mae": mae,
    "nfnet": nfnet,
    "vtab": vtab,
}


def merged(run: Run, changes: Run) -> Run:
    """`run` with the tables of `changes` laid over its own."""
    return {
        **run,
        **{
            key: merged(run[key], value) if isinstance(value, dict) and isinstance(run.get(key), dict) else value
            for key, value in changes.items()
        },
    }


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
    task: TransferTask,
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
        result = train(config, place, data=(task.train.subset(part), watched), on_row=on_row)
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
    heldout = task.train.subset(chosen[mixed[:held]])
    tried = [trained(chosen[mixed[held:]], heldout, rate, folder / f"rate-{rate:g}") for rate in rates]
    _, best = max(tried, key=lambda pair: pair[0])
    if recipe.retrain:
        return trained(chosen, _watched(task.test), best.learning_rate, folder / "all")[1]
    return best


def run_config(
    pretrained: Pretrained,
    task: TransferTask,
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
        "precision": "float32",  # scores are compared between machines
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
        parts.append(model(normalize(images, source, device)).float().cpu())
    return torch.cat(parts)


def _watched(test: Source) -> Source:
    return test.subset(np.linspace(0, len(test) - 1, min(len(test), MOST_WATCHED)).astype(np.int64))


def _trained(config: RunConfig, source: Source, directory: Path) -> Backbone:
    model = build_model(config, source)
    model.load_state_dict(load_file(published(directory)))
    return model
