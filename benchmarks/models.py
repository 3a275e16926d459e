"""Training speed of our backbones beside timm's: forward, backward and optimizer step, same batch, same precision.

    python benchmarks/models.py                       # eager and channels-last, float32, all models
    python benchmarks/models.py --compile             # torch.compile for both sides as well (minutes a model)
    python benchmarks/models.py --only vit_s16_token --precision bfloat16 --threads 2

Each side is taken at its best: timm as it is, in channels-last memory, and compiled; ours as it is and compiled. The
variants take turns, and each time is the median of its turns. A ratio above one says that ours is faster. Memory is
the peak on a GPU, and on a CPU what autograd keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models import cost, create_model

PAIRS = {
    "vit_s16_token": "vit_small_patch16_224",
    "deit_s16": "deit_small_patch16_224",
    "poolformer_s12": "poolformer_s12",
    "convformer_s18": "convformer_s18",
    "caformer_s18": "caformer_s18",
    "resmlp_s12": "resmlp_12_224",
    "nfnet_f0": "dm_nfnet_f0",
    "bit_r50x1": "resnetv2_50x1_bit",
}


def stepper(
    model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype, compiled: bool
) -> Callable[[], None]:
    """A training step of the model: AdamW for all, in one fused kernel where there is one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model
    autocast = torch.autocast(images.device.type, precision, enabled=precision != torch.float32)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def kept_bytes(model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype) -> int:
    """Peak memory of a step on a GPU; on a CPU, the storages that autograd keeps, parameters included."""
    autocast = torch.autocast(images.device.type, precision, enabled=precision != torch.float32)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        with autocast:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return torch.cuda.max_memory_allocated()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        loss = F.cross_entropy(model(images), labels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def compare(ours: str, theirs: str, args: argparse.Namespace) -> dict[str, object]:
    device, precision = torch.device(args.device), getattr(torch, args.precision)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)
    options = {} if ours.startswith(("bit", "resmlp")) else {"drop_path": 0.0}
    if ours.startswith("nfnet"):
        options["dropout"] = 0.0

    def our_model() -> nn.Module:
        return create_model(ours, image_size=args.image_size, seed=0, **options).to(device).train()

    def their_model(channels_last: bool) -> nn.Module:
        sized = {"img_size": args.image_size} if theirs.startswith(("vit", "deit", "resmlp")) else {}
        rates = {"drop_rate": 0.0, "drop_path_rate": 0.0}
        model = timm.create_model(theirs, **sized, **rates).to(device).train()
        return model.to(memory_format=torch.channels_last) if channels_last else model

    channels_last_images = images.contiguous(memory_format=torch.channels_last)
    steps = {
        "timm eager": stepper(their_model(False), images, labels, precision, False),
        "timm channels-last": stepper(their_model(True), channels_last_images, labels, precision, False),
        "ours eager": stepper(our_model(), images, labels, precision, False),
    }
    if args.compile:
        steps["timm compiled"] = stepper(their_model(False), images, labels, precision, True)
        steps["timm compiled channels-last"] = stepper(their_model(True), channels_last_images, labels, precision, True)
        steps["ours compiled"] = stepper(our_model(), images, labels, precision, True)
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.repeats):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = {side: min(value for name, value in medians.items() if name.startswith(side)) for side in ("ours", "timm")}
    flops = cost(ours, image_size=args.image_size).train_flops_per_image * args.batch
    return {
        "model": ours,
        "ratio": best["timm"] / best["ours"],
        "seconds": medians,
        "tera_flops_per_second": flops / best["ours"] / 1e12,
        "memory_ratio": kept_bytes(our_model(), images, labels, precision)
        / kept_bytes(their_model(False), images, labels, precision),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="steadier than wall time where the machine is shared"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {args.device}, {args.threads} threads")
    print(f"torch {torch.__version__}, timm {timm.__version__}")
    print(f"batch {args.batch}, {args.image_size} px, {args.precision}")
    rows = []
    for name in args.only:
        torch._dynamo.reset()
        rows.append(compare(name, PAIRS[name], args))
        row = rows[-1]
        seconds = "  ".join(f"{key} {value * 1e3:.0f} ms" for key, value in row["seconds"].items())  # type: ignore[attr-defined]
        print(f"{name:16s} ratio {row['ratio']:.2f}  memory {row['memory_ratio']:.2f}  {seconds}", flush=True)
    mean = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))  # type: ignore[arg-type]
    print(f"geometric mean of the ratios: {mean:.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
