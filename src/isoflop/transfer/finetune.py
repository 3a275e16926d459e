"""Fine-tuning all weights on a few labelled images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from isoflop.config import OptimConfig
from isoflop.models import Backbone
from isoflop.train.optim import build_optimizer
from isoflop.train.state import step_seed


def finetune_accuracy(
    model: Backbone,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    num_classes: int,
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
) -> float:
    """Top-1 accuracy on the test images after `steps` of AdamW on all `images` (n, C, H, W) at once.

    A fresh linear head starts at zero; the rate falls linearly to zero. `seed` is that of random layers.
    `model` itself is left as it was.
    """
    tuned = _Classifier(copy.deepcopy(model), num_classes).train()
    optimizer = build_optimizer(tuned, OptimConfig(name="adamw", learning_rate=learning_rate, weight_decay=0.05))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(seed, step))  # of stochastic depth and dropout
            loss = nn.functional.cross_entropy(tuned(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tuned.eval()
    with torch.no_grad():
        answers = torch.cat([tuned(part).argmax(dim=1) for part in torch.split(test_images, 256)])
    return float((answers == test_labels).double().mean())


class _Classifier(nn.Module):
    """A backbone's pooled features under a linear head that starts at zero."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        backbone.head = nn.Identity()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.num_features, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone.features(images))
        return logits

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
