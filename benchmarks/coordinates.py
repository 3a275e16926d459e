"""The coordinate check: how far activations move in a few steps, which μP makes the same at every width.

arXiv 2203.03466, appendix D.1: without it they move further the wider the network, with it not, and so one learning
rate suits all widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isoflop.config import RunConfig
from isoflop.data import batches, open_split
from isoflop.train.device import normalize
from isoflop.train.layout import blocks
from isoflop.train.loop import build_objective
from isoflop.train.ranks import Ranks
from isoflop.train.step import Step


def coordinate_changes(config: RunConfig) -> dict[str, float]:
    """The mean |change| of each output of the stem, the blocks and the head, over the `steps` of `config`, on its first
    batch; by the name of the module in the backbone. The rate is constant from the first step on."""
    config = config.model_copy(update={"precision": "float32"})
    source, device = open_split(config.data, "train"), torch.device("cpu")
    objective = build_objective(config, source)
    step = Step(objective, source, config, Ranks(device))
    feed = list(
        batches(
            source,
            seed=config.data.seed,
            batch_size=config.batch_size,
            start_step=0,
            stop_step=config.steps,
            augment="none",
            workers=0,
        )
    )
    images = normalize(feed[0].images, source, device)
    before = _outputs(objective.backbone, images)
    for batch in feed:
        step(batch, config.optim.learning_rate)
    after = _outputs(objective.backbone, images)
    return {name: (after[name] - before[name]).abs().mean().item() for name in before}


@torch.no_grad()
def _outputs(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    with _listening(backbone, outputs):
        backbone(images)
    return outputs


@contextmanager
def _listening(backbone: nn.Module, outputs: dict[str, Tensor]) -> Iterator[None]:
    looked_at = {id(module) for module in blocks(backbone)}
    handles = []
    for name, module in backbone.named_modules():
        if id(module) in looked_at or name in ("stem", "head"):

            def note(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                outputs[name] = output.detach().clone()

            handles.append(module.register_forward_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
