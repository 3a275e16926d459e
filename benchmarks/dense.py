"""Do pretrained backbones find and segment better than random ones; and is a step as fast as with timm's features?

python benchmarks/dense.py learn OUT --cifar10 parquet:PATH --bccd DIR --nuclei DIR --camvid DIR
python benchmarks/dense.py learn OUT … --seeds 0 --families vit --tasks nuclei --set steps=20      # a try
python benchmarks/dense.py speed

`learn` pretrains one small backbone of each family on CIFAR-10, then trains a head on each data set with the same short
schedule from those weights and from random ones. What is done is not done again; a table goes to OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.config import DenseTransferConfig, DetectConfig, RunConfig, SegmentConfig, parse
from isoflop.data import open_source
from isoflop.models import create_model
from isoflop.objectives import Objective, make_objective
from isoflop.train import train
from isoflop.train.price import train_flops_per_image
from isoflop.transfer import open_backbone
from isoflop.transfer.dense import judge_dense

SIZE = 192  # px, of every task
PRETRAINED_AT = 64  # px
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {
        "name": "vit_s16",
        "depths": [6],
        "widths": [96],
        "mlp_widths": [384],
        "heads": [3],
        "stem_kernel": 8,
        "stem_stride": 8,
    },
    "poolformer": {
        "name": "poolformer_s12",
        "depths": [1, 1, 3, 1],
        "widths": [32, 64, 128, 256],
        "mlp_widths": [128, 256, 512, 1024],
    },
    "nfnet": {
        "name": "nfnet_f0",
        "depths": [1, 1, 3, 1],
        "widths": [32, 64, 128, 128],
        "stem_widths": [8, 8, 16, 32],
        "final_width": 256,
        "group_width": 16,
        "drop_path": 0.0,
        "dropout": 0.0,
    },
}
RATES = {"vit": 1e-3, "poolformer": 1e-3, "nfnet": 1e-3}
TASKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bccd": ("detect", "coco:{}", {"objective": {"width": 64}}),
    "nuclei": ("detect", "coco:{}?masks=1", {"objective": {"width": 64, "proposals": 300}, "batch_size": 4}),
    "camvid": ("segment", "ade20k:{}?classes=11&ignore=11", {"objective": {"width": 64}}),
}
HEADS = {"bccd": "retinanet", "nuclei": "mask_rcnn", "camvid": "semantic_fpn"}


def pretraining(family: str, source: str, steps: int) -> RunConfig:
    """The run whose backbone is tried."""
    return parse(
        {
            "model": FAMILIES[family],
            "steps": steps,
            "batch_size": 128,
            "data": {"source": source, "image_size": PRETRAINED_AT, "augment": "crop_flip", "heldout": 2000},
            "optim": {"name": "adamw", "learning_rate": RATES[family], "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup": min(100, steps // 10)},
            "tensorboard": False,
            "log_every": 50,
        },
        RunConfig,
    )


def learn(arguments: argparse.Namespace) -> None:
    """Trains and judges what is not there yet, and writes the table."""
    changes: dict[str, Any] = {key: json.loads(value) for key, value in (pair.split("=") for pair in arguments.set)}
    rows: list[dict[str, Any]] = []
    told: list[str] = []
    for family in arguments.families:
        run = pretraining(family, arguments.cifar10, arguments.pretraining_steps)
        before = arguments.out / "pretraining" / family
        result = train(run, before, on_row=lambda row, family=family: print(f"{family}: {row['step']}", flush=True))
        flops = train_flops_per_image(run, 10, 3) * run.images
        told.append(f"{family}: CIFAR-10 at {PRETRAINED_AT} px, {run.images:,} images, {flops:.1e} FLOPs, "
                    f"accuracy {result.heldout_accuracy:.3f}")  # fmt: skip
        for task in arguments.tasks:
            protocol, source, own = TASKS[task]
            config = parse(
                {
                    "protocol": protocol,
                    "dataset": source.format(getattr(arguments, task)),
                    "head": HEADS[task],
                    "seeds": arguments.seeds,
                    "run": {"steps": arguments.steps, **own, **changes},
                },
                DenseTransferConfig,
            )
            for random in (False, True):
                backbone = open_backbone(before, image_size=SIZE, random_weights=random)
                name = f"{family}, {'random' if random else 'pretrained'}"
                place = arguments.out / task / name.replace(", ", "-")
                for row in judge_dense(backbone, config, name, folder=place, tell=lambda text: print(text, flush=True)):
                    rows.append({"task": task, **row})
                    print(row["name"], task, row["measure"], row["mean"], row["interval"], flush=True)
    (arguments.out / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (arguments.out / "table.md").write_text(table(rows) + "\n" + "\n".join(told) + "\n", encoding="utf-8")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each task, measure and family, random beside pretrained."""
    lines = ["| data | measure | backbone | random | pretrained |", "|---|---|---|---|---|"]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        family, kind = row["name"].split(", ")
        shown = f"{100 * row['mean']:.1f}"
        if row["interval"]:
            shown += f" ± {100 * (row['interval'][1] - row['mean']):.1f}"
        cells.setdefault((row["task"], row["measure"], family), {})[kind] = shown
    for (task, measure, family), by_kind in cells.items():
        lines.append(f"| {task} | {measure} | {family} | {by_kind.get('random')} | {by_kind.get('pretrained')} |")
    return "\n".join(lines) + "\n"


def speed(arguments: argparse.Namespace) -> None:
    """Seconds of a training step of Mask R-CNN and UperNet with our features and with timm's, taken in turns."""
    torch.set_num_threads(arguments.threads)
    pairs = {
        "poolformer_s12": ("poolformer_s12", "timm:poolformer_s12"),
        "vit_s16": ("vit_s16", "timm:vit_small_patch16_224"),
    }
    heads = {
        "mask_rcnn": (DetectConfig(name="detect", head="mask_rcnn"), "scenes?classes=10&images=16"),
        "upernet": (SegmentConfig(name="segment", head="upernet"), "scenes?classes=10&images=16&task=segment"),
    }
    for name, both in pairs.items():
        for head, (config, uri) in heads.items():
            source = open_source(uri, split="train", image_size=arguments.size)
            images, labels = source.read(np.arange(arguments.batch_size))
            pixels = images.float() / 255
            objectives = [
                make_objective(
                    config, create_model(own, num_classes=source.num_classes, image_size=arguments.size, seed=0), seed=0
                )
                for own in both
            ]
            times: list[list[float]] = [[], []]
            for _ in range(arguments.repeats + 1):
                for k, objective in enumerate(objectives):
                    times[k].append(step_seconds(objective, pixels, labels))
            ours, theirs = (statistics.median(t[1:]) for t in times)
            print(f"{name}, {head}: ours {ours:.2f} s, timm {theirs:.2f} s, ratio {theirs / ours:.2f}", flush=True)


def step_seconds(objective: Objective, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The time of a forward and a backward pass, on the same candidates each time."""
    torch.manual_seed(0)
    objective.train()
    began = time.perf_counter()
    objective(images, labels, lambda stream, count: torch.zeros(1)).backward()  # type: ignore[no-untyped-call]
    objective.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    learning = commands.add_parser("learn")
    learning.add_argument("out", type=Path)
    learning.add_argument("--cifar10", required=True)
    for task in TASKS:
        learning.add_argument(f"--{task}")
    learning.add_argument("--families", nargs="+", default=list(FAMILIES))
    learning.add_argument("--tasks", nargs="+", default=list(TASKS))
    learning.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    learning.add_argument("--steps", type=int, default=300)
    learning.add_argument("--pretraining-steps", type=int, default=3000)
    learning.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="of the runs on the tasks")
    learning.set_defaults(do=learn)
    timing = commands.add_parser("speed")
    timing.add_argument("--size", type=int, default=224)
    timing.add_argument("--batch-size", type=int, default=2)
    timing.add_argument("--repeats", type=int, default=5)
    timing.add_argument("--threads", type=int, default=2)
    timing.set_defaults(do=speed)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
