"""Masked autoencoding against what it saves: the same step with mask tokens in the encoder, the supervised step, and
Hugging Face's ViTMAE.

    python benchmarks/mae.py [--model vit_l16] [--batch-size 4] [--steps 3]

Each contender has a process of its own, for its peak of memory: one step to warm up, then the median of the others. A
step is forward, backward and one update by the same fused AdamW, in float32, on random images of 224 px.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.config import MaskedConfig
from isoflop.models import cost, create_model
from isoflop.models.metaformer import MetaFormer, MetaFormerConfig
from isoflop.models.presets import PRESETS
from isoflop.objectives import Masked, Supervised, objective_cost
from isoflop.train.step import sample_uniforms

CONTENDERS = ("masked", "mask tokens inside", "supervised", "Hugging Face ViTMAE")
CPU = torch.device("cpu")


class MaskTokensInside(nn.Module):
    """The same autoencoder, but hidden patches go through the encoder as mask tokens (arXiv 2111.06377, table 1c)."""

    def __init__(self, objective: Masked) -> None:
        super().__init__()
        self.objective = objective
        self.token = nn.Parameter(torch.zeros(1, 1, objective.backbone.num_features))

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        objective, encoder = self.objective, self.objective.backbone
        assert isinstance(encoder, MetaFormer)
        x = encoder.embed(images).flatten(1, 2)
        hidden = order[:, objective.visible :, None].expand(-1, -1, x.shape[-1])
        x = x.scatter(1, hidden, self.token.expand_as(hidden))
        tokens = encoder.normalised(encoder.pyramid(x)[-1])
        prefix = encoder.config.prefix_tokens
        places = torch.cat([torch.arange(prefix).expand(len(x), -1), order + prefix], dim=1)
        tokens = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        return objective.decoder(tokens[:, : prefix + objective.visible], order, objective.visible)


def contender(name: str, model: str, batch: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The module and the loss of one step."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(batch, dtype=torch.int64)
    noise = sample_uniforms(0, 0, np.arange(batch), CPU)
    if name == "Hugging Face ViTMAE":
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        config = PRESETS[model][1]
        assert isinstance(config, MetaFormerConfig)
        peer = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=config.widths[0],
                num_hidden_layers=config.depths[0],
                num_attention_heads=config.heads[0],
                intermediate_size=config.mlp_widths[0],
                patch_size=config.stem_stride,
                norm_pix_loss=True,
            )
        ).train()
        return peer, lambda: peer(images).loss
    if name == "supervised":
        supervised = Supervised(create_model(model, seed=0)).train()
        return supervised, lambda: supervised(images, labels, noise)
    masked = Masked(create_model(model, seed=0)).train()
    if name == "masked":
        return masked, lambda: masked(images, labels, noise)
    inside = MaskTokensInside(masked).train()

    def loss() -> Tensor:
        order = masked.order(noise)
        return (inside(images, order) - 1).square().mean()

    return inside, loss


def measure(name: str, model: str, batch: int, steps: int) -> dict[str, float]:
    """Seconds of a step, the peak of memory in bytes, and seconds of choosing patches."""
    torch.manual_seed(0)
    module, loss = contender(name, model, batch)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=True)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    found = {
        "seconds": float(np.median(seconds[1:])),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if isinstance(module, Masked):
        times = []
        for step in range(20):
            began = time.perf_counter()
            module.order(sample_uniforms(0, step, np.arange(batch), CPU))
            times.append(time.perf_counter() - began)
        found["choosing"] = float(np.median(times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mae_l16")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=CONTENDERS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.model, args.batch_size, args.steps)))
        return
    found: dict[str, dict[str, float]] = {}
    for name in CONTENDERS:
        command = [sys.executable, __file__, "--model", args.model, "--batch-size", str(args.batch_size)]
        command += ["--steps", str(args.steps), "--only", name]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(result.stdout.splitlines()[-1])
        print(f"{name:22s} {found[name]['seconds']:8.2f} s a step   {found[name]['peak'] / 2**30:6.2f} GiB", flush=True)
    masked = found["masked"]
    counted = objective_cost(MaskedConfig(name="masked"), args.model).macs
    print(f"{args.model}, batch {args.batch_size}, {torch.get_num_threads()} threads")
    for name in CONTENDERS[1:]:
        print(f"  {found[name]['seconds'] / masked['seconds']:.2f} x the speed of: {name}")
    print(f"  supervised / masked in multiply-adds: {cost(args.model).macs / counted:.2f}")
    print(f"  memory / Hugging Face's: {masked['peak'] / found['Hugging Face ViTMAE']['peak']:.3f}")
    print(f"  choosing visible patches: {masked['choosing'] / masked['seconds']:.2%} of a step")


if __name__ == "__main__":
    main()
