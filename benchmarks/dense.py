"""Do pretrained backbones find and segment better than random ones; and is a step as fast as with timm's features?

python benchmarks/dense.py learn OUT --cifar10 parquet:PATH --bccd DIR --nuclei DIR --camvid DIR
python benchmarks/dense.py learn OUT … --seeds 0 --families vit --tasks nuclei --set steps=20      # a try
python benchmarks/dense.py speed

`learn` pretrains one small backbone of each family on CIFAR-10, then trains a head on each data set with the same short
schedule from those weights and from random ones: all tasks with the first seed, then with the next. What is done is not
done again; OUT/table.md and OUT/rows.json have what there is after every run.
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
from isoflop.train.device import to_device
from isoflop.train.forecast import train_flops_per_image
from isoflop.transfer import open_backbone
from isoflop.transfer.dense import judge_dense
from isoflop.transfer.dense.judge import mean_interval

PRETRAINED_AT = 32  # px
FAMILIES: dict[str, dict[str, Any]] = {
    "nfnet": {
        "name": "nfnet_f0",
        "depths": [1, 2, 2],
        "widths": [64, 128, 256],
        "strides": [1, 2, 2],
        "stem_widths": [16, 16, 32],
        "stem_strides": [2, 1, 2],
        "final_width": 512,
        "group_width": 16,
        "drop_path": 0.0,
        "dropout": 0.0,
    },
    "poolformer": {
        "name": "poolformer_s12",
        "depths": [1, 2, 2],
        "widths": [48, 96, 192],
        "mlp_widths": [192, 384, 768],
        "mixers": ["pooling"] * 3,
        "heads": [1] * 3,
    },
    "vit": {
        "name": "vit_s16",
        "depths": [4],
        "widths": [96],
        "mlp_widths": [384],
        "heads": [3],
        "stem_kernel": 8,
        "stem_stride": 8,
    },
}
RATES = {"nfnet": 2e-3, "poolformer": 2e-3, "vit": 1e-3}  # of pretraining
TASKS: dict[str, tuple[str, str, str, int, int, dict[str, Any]]] = {  # protocol, source, head, px, steps, what else
    "camvid": ("segment", "ade20k:{}?classes=11&ignore=11", "semantic_fpn", 128, 120, {}),
    "bccd": ("detect", "coco:{}", "retinanet", 128, 300, {"anchor": 2}),
    "nuclei": ("detect", "coco:{}?masks=1", "mask_rcnn", 160, 120, {"anchor": 2, "proposals": 100, "samples": 64}),
}
SCHEDULE: dict[str, Any] = {
    "batch_size": 4,
    "threads": 1,
    "optim": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05, "clip": 1.0, "layer_decay": 0.7},
    "schedule": {"name": "constant", "warmup": 10, "cooldown": 0.8},
}


def pretraining(family: str, source: str, steps: int) -> RunConfig:
    """The run whose backbone is tried."""
    return parse(
        {
            "model": FAMILIES[family],
            "steps": steps,
            "batch_size": 128,
            "precision": "bfloat16",
            "threads": 1,
            "data": {"source": source, "image_size": PRETRAINED_AT, "augment": "crop_flip", "heldout": 2000},
            "optim": {"name": "adamw", "learning_rate": RATES[family], "weight_decay": 0.05, "clip": 1.0},
            "schedule": {"name": "cosine", "warmup": min(100, steps // 8)},
            "tensorboard": False,
            "log_every": 100,
        },
        RunConfig,
    )


def learn(arguments: argparse.Namespace) -> None:
    """Trains and judges what is not there yet, and writes the table as it grows."""
    told = []
    for family in arguments.families:
        run = pretraining(family, arguments.cifar10, arguments.pretraining_steps)
        result = train(run, arguments.out / "pretraining" / family)
        flops = train_flops_per_image(run, 10, 3) * run.images
        told.append(
            f"{family}: CIFAR-10 at {PRETRAINED_AT} px, {run.images:,} images, {flops:.1e} FLOPs, "
            f"held-out accuracy {result.heldout_accuracy:.3f}"
        )
        print(told[-1], flush=True)
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for count in range(1, len(arguments.seeds) + 1):
        for task in arguments.tasks:
            for family in arguments.families:
                for random in (False, True):
                    for row in judged(arguments, task, family, arguments.seeds[:count], random=random):
                        rows[task, row["measure"], row["name"]] = {"task": task, **row}
                        print(row["name"], task, row["measure"], row["values"], flush=True)
                    (arguments.out / "rows.json").write_text(json.dumps([*rows.values()], indent=1), encoding="utf-8")
                    text = table([*rows.values()]) + "\n" + "\n".join(told) + "\n"
                    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    print(table([*rows.values()]))


def judged(
    arguments: argparse.Namespace, task: str, family: str, seeds: list[int], *, random: bool
) -> list[dict[str, Any]]:
    """The rows of one backbone on one task."""
    protocol, source, head, size, steps, own = TASKS[task]
    changes: dict[str, Any] = {key: json.loads(value) for key, value in (pair.split("=") for pair in arguments.set)}
    objective = {"width": 32, **own}
    augment = {"data": {"augment": "flip"}}
    config = parse(
        {
            "protocol": protocol,
            "dataset": source.format(getattr(arguments, task)),
            "head": head,
            "seeds": seeds,
            "run": {**SCHEDULE, "steps": steps, "objective": objective, **augment, **changes},
        },
        DenseTransferConfig,
    )
    backbone = open_backbone(arguments.out / "pretraining" / family, image_size=size, random_weights=random)
    name = f"{family}, {'random' if random else 'pretrained'}"
    return judge_dense(backbone, config, name, folder=arguments.out / task / name.replace(", ", "-"))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line for each task, measure and family: random, pretrained, and what a seed gains on average, each
    with half of its interval over the seeds."""
    lines = ["| data | measure | backbone | random | pretrained | gain | seeds |", "|---|---|---|---|---|---|---|"]
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        family, kind = row["name"].split(", ")
        cells.setdefault((row["task"], row["measure"], family), {})[kind] = row["values"]
    for told, cell in cells.items():
        random, pretrained = cell.get("random", []), cell.get("pretrained", [])
        gains = [b - a for a, b in zip(random, pretrained, strict=False)]
        shown = " | ".join([*told, _percent(random), _percent(pretrained), _percent(gains)])
        lines.append(f"| {shown} | {len(gains)} |")
    return "\n".join(lines) + "\n"


def _percent(values: list[float]) -> str:
    if not values:
        return "–"
    interval, mean = mean_interval(values), statistics.fmean(values)
    return f"{100 * mean:.1f}" + (f" ± {100 * (interval[1] - mean):.1f}" if interval else "")


def speed(arguments: argparse.Namespace) -> None:
    """CPU seconds of a training step of Mask R-CNN and UperNet with our features and with timm's, taken in turns: the
    median of both, and of the ratio of two neighbours."""
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
                to_device(
                    make_objective(
                        config,
                        create_model(own, num_classes=source.num_classes, image_size=arguments.size, seed=0),
                        seed=0,
                    ),
                    torch.device("cpu"),
                )
                for own in both
            ]
            times: list[list[float]] = [[], []]
            for _ in range(arguments.repeats + 1):
                for k, objective in enumerate(objectives):
                    times[k].append(step_seconds(objective, pixels, labels))
            times = [t[1:] for t in times]  # the first warms up
            ours, theirs = (statistics.median(t) for t in times)
            ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
            print(f"{name}, {head}: ours {ours:.2f} s, timm {theirs:.2f} s, ratio {ratio:.2f}", flush=True)


def step_seconds(objective: Objective, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The time of a forward and a backward pass, on the same candidates each time."""
    torch.manual_seed(0)
    objective.train()
    began = time.process_time()
    objective(images, labels, lambda stream, count: torch.zeros(len(images), count)).backward()  # type: ignore[no-untyped-call]
    objective.zero_grad(set_to_none=True)
    return time.process_time() - began


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
    learning.add_argument("--pretraining-steps", type=int, default=800)
    learning.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="of the runs on the tasks")
    learning.set_defaults(do=learn)
    timing = commands.add_parser("speed")
    timing.add_argument("--size", type=int, default=224)
    timing.add_argument("--batch-size", type=int, default=2)
    timing.add_argument("--repeats", type=int, default=5)
    timing.add_argument("--threads", type=int, default=1)
    timing.set_defaults(do=speed)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
