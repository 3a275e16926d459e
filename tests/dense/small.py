"""Small backbones and scenes that the tests of dense tasks share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.config import DetectConfig, SegmentConfig
from isoflop.data import open_source
from isoflop.models import Backbone, create_model
from isoflop.objectives import make_objective

SIZE = 64
BACKBONES: dict[str, dict[str, Any]] = {
    "vit_s16": {"depths": (4,), "widths": (16,), "mlp_widths": (32,), "heads": (2,)},
    "poolformer_s12": {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "mlp_widths": (16, 16, 32, 32)},
    "nfnet_w8d2": {},
    "bit_r50x1": {"depths": (1, 1, 1, 1)},
    "timm:resnet10t": {},
    "timm:test_vit": {},
}
DETECT = DetectConfig(name="detect", width=16)
MASKS = DetectConfig(name="detect", head="mask_rcnn", width=16, proposals=32)
FPN = SegmentConfig(name="segment", width=16)
UPERNET = SegmentConfig(name="segment", head="upernet", width=16)


def backbone(name: str, num_classes: int = 3, size: int = SIZE, **more: Any) -> Backbone:
    return create_model(name, num_classes=num_classes, image_size=size, seed=0, **{**BACKBONES[name], **more})


def objective(config: DetectConfig | SegmentConfig, name: str = "poolformer_s12", *, seed: int = 0, **more: Any) -> Any:
    classes = 3 if config.name == "detect" else 4
    return make_objective(config, backbone(name, classes, **more), seed=seed)


def batch(task: str, count: int = 2, size: int = SIZE) -> tuple[Tensor, Tensor]:
    source = open_source(f"scenes?classes=3&images=8&task={task}", split="train", image_size=size)
    images, labels = source.read(np.arange(count))
    return images.float() / 255 - 0.5, labels


def uniforms(stream: str, count: int) -> Tensor:
    return torch.zeros(2, count)
