"""Training speed of our backbones beside timm's: forward, backward and optimizer step, same batch, same precision.

    python benchmarks/models.py --batch 4 --repeats 5 --threads 2            # eager, float32, all models: 5 minutes
    python benchmarks/models.py --precision float32 bfloat16 --only vit_s16_token
    python benchmarks/models.py --compile --limit 300                        # compiled variants as well

Each side is taken at its best: timm as it is, in channels-last memory, and compiled block by block; ours as it is and
compiled. The variants take turns, and each time is the median of its turns; compiled ones run afterwards, each in a
process of its own, and are given up after `--limit` seconds. A ratio above one says that ours is faster. Memory is ours
over timm's: the peak on a GPU, and on a CPU what autograd keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models import cost, create_model
from isoflop.train.layout import blocks

PAIRS = {
    "vit_s16_token": "vit_small_patch16_224",
    "deit_s16": "deit_small_patch16_224",
    "poolformer_s12": "poolformer_s12",
    "convformer_s18": "convformer_s18",
    "caformer_s18": "caformer_s18",
    "resmlp_s12": "resmlp_12_224",
    "nfnet_f0": "dm_nfnet_f0",
    "bit_r50x1": "resnetv2_50x1_bit",
    "vit_l16_token": "vit_large_patch16_224",
}
USUAL = tuple(name for name in PAIRS if name != "vit_l16_token")  # which is for GPUs
EAGER = ("timm", "timm channels-last", "ours")
COMPILED = ("timm compiled", "timm compiled channels-last", "ours compiled")


class Variant:
    """One side's model on a fixed batch, and its training step with AdamW, fused as it is for all."""

    def __init__(self, variant: str, name: str, precision: torch.dtype, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=args.device)
        self.labels = torch.randint(1000, (args.batch,), device=args.device)
        # Nothing random in either: they would not drop the same branches.
        if variant.startswith("ours"):
            rates = {} if name.startswith("bit") else {"drop_path": 0.0}
            rates |= {"dropout": 0.0} if name.startswith("nfnet") else {}
            self.model: nn.Module = create_model(name, image_size=args.image_size, seed=0, **rates)
        else:
            theirs = PAIRS[name]
            sized = {"img_size": args.image_size} if theirs.startswith(("vit", "deit", "resmlp")) else {}
            self.model = timm.create_model(theirs, drop_rate=0.0, drop_path_rate=0.0, **sized)
        self.model.to(args.device).train()
        if variant.endswith("channels-last"):
            self.model = self.model.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.autocast = torch.autocast(torch.device(args.device).type, precision, enabled=precision != torch.float32)
        if "compiled" in variant:  # by block, as `isoflop train` does: equal blocks are compiled once
            for block in blocks(self.model):
                block.compile()

    def loss(self) -> Tensor:
        with self.autocast:
            return F.cross_entropy(self.model(self.images), self.labels)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        if self.images.is_cuda:
            torch.cuda.synchronize()

    def kept_bytes(self) -> int:
        """Peak memory of a pass on a GPU; on a CPU, the storages that autograd keeps, parameters included."""
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        if self.images.is_cuda:
            before = torch.cuda.memory_allocated()  # of this and of the other variants, weights included
            torch.cuda.reset_peak_memory_stats()
            self.loss().backward()
            return torch.cuda.max_memory_allocated() - before
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def medians(variants: dict[str, Variant], args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of each, which take turns after one step each that does not count."""
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(args.repeats + 1):
        for name, variant in variants.items():
            start = clock()
            variant.step()
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def in_own_process(variant: str, name: str, precision: str, args: argparse.Namespace) -> float | None:
    """Median seconds of a step of a compiled variant; None where it took longer than the limit, or broke."""
    command = [sys.executable, __file__, "--alone", variant, "--only", name, "--precision", precision]
    for option in ("batch", "image_size", "repeats", "device", "threads"):
        command += ["--" + option.replace("_", "-"), str(getattr(args, option))]
    command += ["--cpu-seconds"] if args.cpu_seconds else []
    # A session of its own, so that compilers it started end with it.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=args.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    return float(out.split()[-1]) if process.returncode == 0 else None


def compare(name: str, precision: str, args: argparse.Namespace) -> dict[str, object]:
    variants = {variant: Variant(variant, name, getattr(torch, precision), args) for variant in EAGER}
    memory = variants["ours"].kept_bytes() / variants["timm"].kept_bytes()
    seconds: dict[str, float | None] = {**medians(variants, args)}
    del variants
    if args.compile:
        seconds |= {variant: in_own_process(variant, name, precision, args) for variant in COMPILED}
    best = {side: min(v for k, v in seconds.items() if v and k.startswith(side)) for side in ("ours", "timm")}
    flops = cost(name, image_size=args.image_size).train_flops_per_image * args.batch
    return {
        "model": name,
        "precision": precision,
        "seconds": seconds,
        "ratio": best["timm"] / best["ours"],
        "memory": memory,
        "tera_flops_per_second": flops / best["ours"] / 1e12,
    }


def print_row(row: dict[str, object]) -> None:
    seconds: dict[str, float | None] = row["seconds"]  # type: ignore[assignment]
    cells = [f"{value * 1e3:.0f}" if value else "–" for value in seconds.values()]
    cells += [f"{row['ratio']:.2f}", f"{row['memory']:.2f}", f"{row['tera_flops_per_second']:.3g}"]
    print(f"| {row['model']} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PAIRS, default=USUAL, metavar="MODEL")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile for both sides as well")
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds for one compiled variant, compilation included"
    )
    parser.add_argument("--cpu-seconds", action="store_true", help="steadier than wall time on a busy machine")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--alone", choices=COMPILED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        variant = Variant(args.alone, args.only[0], getattr(torch, args.precision[0]), args)
        print(medians({args.alone: variant}, args)[args.alone])
        return
    print(f"{platform.processor() or platform.machine()}, {args.device}, {args.threads} threads,", end=" ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}")
    rows = []
    for precision in args.precision:
        print(f"\nBatch {args.batch}, {args.image_size} px, {precision}.\n")
        columns = [f"{variant}, ms" for variant in (*EAGER, *(COMPILED if args.compile else ()))]
        print(f"| {' | '.join(('model', *columns, 'ratio', 'memory', 'TFLOP/s'))} |")
        print("|---" * (len(columns) + 4) + "|")
        ratios = []
        for name in args.only:
            rows.append(compare(name, precision, args))
            ratios.append(rows[-1]["ratio"])
            print_row(rows[-1])
        print(f"\nGeometric mean of the ratios {math.exp(statistics.fmean(map(math.log, ratios))):.3f}.")  # type: ignore[arg-type]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
