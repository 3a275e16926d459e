"""Masked autoencoding against what it saves: the same step with mask tokens in the encoder, the supervised step, and
Hugging Face's ViTMAE. Beside the seconds stands what the multiply-adds alone would permit.

    python benchmarks/mae.py [--model mae_l16] [--batch-size 4] [--steps 3]
    python benchmarks/mae.py --share 4 --batch-size 8     # a quarter of the blocks, for a machine with other users

Each candidate has a process of its own, for its peak of memory: one step to warm up, then the median of the others,
in seconds of the wall and of the processor. A step is forward, backward and one update by the same fused AdamW, in
float32, on random images of 224 px. With a share of the blocks (of encoder and decoder alike, so that what the
multiply-adds permit stays about the same) all families fit into memory and take turns, a step each.
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
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models import create_model
from isoflop.models.metaformer import MetaFormer, MetaFormerConfig
from isoflop.models.presets import PRESETS
from isoflop.objectives import Masked, Supervised, Uniforms
from isoflop.train.device import Precision
from isoflop.train.step import sample_uniforms

CONTENDERS = ("masked", "mask tokens inside", "supervised", "Hugging Face ViTMAE")
DECODER_DEPTH = 8


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
        places = torch.cat([torch.arange(prefix, device=x.device).expand(len(x), -1), order + prefix], dim=1)
        tokens = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        return objective.decoder(tokens[:, : prefix + objective.visible], order, objective.visible)


def candidate(
    name: str, model: str, images: Tensor, noise: Uniforms, share: int
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The module on the device of the images, of one block in `share`, and the loss of one step."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    config = PRESETS[model][1]
    assert isinstance(config, MetaFormerConfig)
    depth = config.depths[0] // share
    if name == "Hugging Face ViTMAE":
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        peer = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=config.widths[0],
                num_hidden_layers=depth,
                num_attention_heads=config.heads[0],
                intermediate_size=config.mlp_widths[0],
                patch_size=config.stem_stride,
                decoder_num_hidden_layers=DECODER_DEPTH // share,
                norm_pix_loss=True,
            )
        )
        peer.to(images.device).train()
        return peer, lambda: peer(images).loss
    if name == "supervised":
        supervised = Supervised(create_model(model, seed=0, depths=(depth,))).to(images.device).train()
        return supervised, lambda: supervised(images, labels, noise)
    masked = Masked(create_model(model, seed=0, depths=(depth,)), decoder_depth=DECODER_DEPTH // share)
    masked.to(images.device).train()
    if name == "masked":
        return masked, lambda: masked(images, labels, noise)
    inside = MaskTokensInside(masked).to(images.device).train()
    return inside, lambda: (inside(images, masked.order(noise)) - 1).square().mean()


class Contender:
    """One of `CONTENDERS` on a fixed batch, and its training step with a fused AdamW."""

    def __init__(
        self, name: str, model: str, batch: int, share: int, device: str = "cpu", precision: str = "float32"
    ) -> None:
        torch.manual_seed(0)
        self.device, self.precision, self.batch = torch.device(device), Precision(precision), batch
        images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
        noise = sample_uniforms(0, 0, np.arange(batch), self.device)
        self.module, self.loss = candidate(name, model, images, noise, share)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(self) -> float:
        """Seconds of the wall."""
        began = time.perf_counter()
        with self.precision.autocast(self.device):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def serve(name: str, model: str, batch: int, share: int) -> None:
    """A step of `name` for every line on the standard input; what it took, as JSON, on the standard output."""
    contender = Contender(name, model, batch, share)
    for step, _ in enumerate(sys.stdin):
        cpu = time.process_time()
        told = {"wall": contender.step(), "cpu": time.process_time() - cpu}
        told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if isinstance(contender.module, Masked):
            cpu = time.process_time()
            contender.module.order(sample_uniforms(0, step, np.arange(batch), contender.device))
            told["choosing"] = time.process_time() - cpu
        print(json.dumps(told), flush=True)


def measure(names: tuple[str, ...], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of what steps of each candidate took; they take turns."""
    command = [sys.executable, __file__, "--model", args.model, "--batch-size", str(args.batch_size)]
    command += ["--share", str(args.share), "--only"]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(1 + args.steps):
        for name, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write("step\n")
            worker.stdin.flush()
            steps[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return {
        name: {key: float(np.median([step[key] for step in told[1:]])) for key in told[0]}
        for name, told in steps.items()
    }


def multiply_adds(name: str, model: str, share: int) -> int:
    """Of a forward pass of one image in training."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(1, 3, 224, 224)
        _, loss = candidate(name, model, images, lambda stream, count: torch.empty(1, count), share)
        with counter:
            loss()
    return counter.get_total_flops() // 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mae_l16")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--share", type=int, default=1, choices=(1, 2, 4, 8), help="one block in so many")
    parser.add_argument("--only", choices=CONTENDERS, help="answer lines on the standard input with steps of this one")
    args = parser.parse_args()
    if args.only:
        serve(args.only, args.model, args.batch_size, args.share)
        return
    found: dict[str, dict[str, float]] = {}
    for group in [CONTENDERS] if args.share > 1 else [(name,) for name in CONTENDERS]:
        found |= measure(group, args)
    masked, counted = found["masked"], multiply_adds("masked", args.model, args.share)
    print(f"{args.model}, one block in {args.share}, batch {args.batch_size}, {torch.get_num_threads()} threads\n")
    print("| step | seconds | of the processor | peak, GiB | masked is faster by | the processor says | FLOPs permit |")
    print("|---|---|---|---|---|---|---|")
    for name, told in found.items():
        print(
            f"| {name} | {told['wall']:.2f} | {told['cpu']:.2f} | {told['peak'] / 2**30:.2f} | "
            f"{told['wall'] / masked['wall']:.2f} x | {told['cpu'] / masked['cpu']:.2f} x | "
            f"{multiply_adds(name, args.model, args.share) / counted:.2f} x |"
        )
    print(f"\nmemory / Hugging Face's: {masked['peak'] / found['Hugging Face ViTMAE']['peak']:.3f}")
    print(f"choosing visible patches: {masked['choosing'] / masked['cpu']:.3%} of a step")


if __name__ == "__main__":
    main()
