"""Published fine-tuning protocols as tables of a run: what a paper says, for the data and the backbone at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from isoflop.models import Backbone
from isoflop.models.positions import SINCOS

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
