"""Backbones of equal compute, pretrained in three ways, each on two tasks by three protocols: docs/results/transfer.md.

    python benchmarks/transfer_table.py --cifar10 parquet:PATH --folder DIR     # started again, it goes on
    python benchmarks/transfer_table.py --table docs/results/transfer/2.5e11.json     # the table of a kept result

Every pretraining takes the same training FLOPs (what the objective adds, such as a decoder, is counted) and is run at
two learning rates, of which the one with the lower held-out loss of its own objective is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from isoflop.config import RunConfig, TransferConfig, parse
from isoflop.data import open_source
from isoflop.models import cost
from isoflop.objectives import objective_cost
from isoflop.train import train
from isoflop.transfer import open_backbone, transfer

BATCH = 64
SGD = {"name": "sgd", "momentum": 0.9, "agc": 0.01, "weight_decay": 2e-5}
ADAMW = {"name": "adamw", "weight_decay": 1e-2}
# preset; optimizer and rates with labels; rates of AdamW by masking
BACKBONES: dict[str, tuple[dict[str, Any], tuple[float, float], tuple[float, float]]] = {
    "vit_w24d2p8": (ADAMW, (5e-3, 1e-2), (2.5e-3, 5e-3)),
    "poolformer_w12d4p4": (ADAMW, (1e-2, 2e-2), (2.5e-3, 5e-3)),
    "nfnet_w16d2": (SGD, (0.5, 1.0), (2.5e-3, 5e-3)),
}
FRACTALS = "fractals?classes=1000&zipf=1.5&turn=0.1&zoom=0.7"
MASKED = {"name": "masked", "decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2}
PRETRAINING = ("fractals", "CIFAR-10, labels", "CIFAR-10, masking")
TASKS: tuple[dict[str, Any], ...] = (
    {"protocols": ("ridge",), "shots": (10,)},
    {"protocols": ("probe",), "shots": (0,), "seeds": (0,)},
    {"protocols": ("finetune",), "shots": (100,), "finetune_steps": 60, "finetune_learning_rate": 5e-3},
)


def pretrain(preset: str, kind: str, cifar10: str, folder: Path, budget: float) -> tuple[Path, dict[str, Any]]:
    """The folder of the better of two runs, and what is known of it."""
    uri = FRACTALS if kind == "fractals" else cifar10
    data: dict[str, Any] = {"source": uri, "heldout": 2048, "augment": "none" if kind == "fractals" else "crop_flip"}
    source, heldout = (
        open_source(uri, split=split, image_size=32, heldout=2048, channels=3) for split in ("train", "heldout")
    )
    optim, rates, masked_rates = BACKBONES[preset]
    objective: Any = "supervised"
    if kind == "CIFAR-10, masking":
        objective, optim, rates = MASKED, ADAMW, masked_rates
    config = {"model": {"name": preset}, "objective": objective, "steps": 1, "batch_size": BATCH, "threads": 1}
    parsed = parse(config, RunConfig)
    flops = objective_cost(
        parsed.objective, preset, num_classes=source.num_classes, image_size=32, in_channels=3
    ).train_flops_per_image
    steps = round(budget / flops / BATCH)
    found = []
    for rate in rates:
        run = parse(
            {
                **config,
                "steps": steps,
                "data": data,
                "optim": {**optim, "learning_rate": rate},
                "schedule": {"warmup": min(50, steps // 5), "cooldown": 0.4},
                "tensorboard": False,
                "log_every": 100,
            },
            RunConfig,
        )
        place = folder / "pretraining" / f"{preset}-{kind.replace(', ', '-')}-{rate:g}-{budget:g}"
        result = train(run, place, data=(source, heldout))
        loss = result.heldout_loss if result.state == "done" else float("inf")
        found.append((loss, place, {"learning_rate": rate, "images": steps * BATCH, "seconds": result.seconds}))
        print(f"{place.name}: {result.state}, held-out loss {loss:.4f}, {result.seconds:.0f} s", flush=True)
    loss, place, known = min(found, key=lambda row: row[0])
    return place, {**known, "heldout_loss": loss, "flops_per_image": flops, "flops": flops * steps * BATCH}


def judged(place: Path | None, preset: str, name: str, cifar10: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of one backbone on all tasks; `place` is None for random weights."""
    weights = folder / f"{preset}.safetensors" if place is None else alone(place, preset, folder)
    if place is None:
        from safetensors.torch import save_file

        from isoflop.models import create_model

        model = create_model(preset, num_classes=10, image_size=32, in_channels=3, seed=0)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, weights, metadata={"isoflop": preset})
    backbone = open_backbone(weights, image_size=32)
    rows: list[dict[str, Any]] = []
    for dataset, label in ((cifar10, "CIFAR-10"), ("digits", "digits")):
        for task in TASKS:
            values = {"seeds": (0, 1, 2), **task, "dataset": dataset}
            if label == "digits" and task["protocols"] == ("finetune",):
                values |= {"shots": (10,)}
            for row in transfer(backbone, TransferConfig.model_validate(values), name, folder=folder / "transfer"):
                kept = {key: value for key, value in row.items() if key not in ("confusion", "per_class")}
                rows.append({**kept, "dataset": label, "preset": preset})
                print(f"{name}, {preset}: {label}, {row['protocol']}: {row['accuracy_mean']:.3f}", flush=True)
    return rows


def alone(place: Path, preset: str, folder: Path) -> Path:
    """A run's weights away from its configuration, whose data would have other channels."""
    path = folder / "weights" / f"{place.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((place / "model.safetensors").read_bytes())
    return path


def table(rows: list[dict[str, Any]], runs: dict[str, dict[str, Any]]) -> str:
    """The Markdown of all results."""
    names = dict.fromkeys((row["preset"], row["name"]) for row in rows)
    columns = list(dict.fromkeys((row["dataset"], row["protocol"], row["shots"]) for row in rows))
    heads = [f"{d}, {p}, {f'{s} shots' if s else 'all images'}" for d, p, s in columns]
    lines = [f"| backbone | pretraining | FLOPs | {' | '.join(heads)} |", "|" + "---|" * (3 + len(heads))]
    for preset, name in names:
        cells = []
        for column in columns:
            (row,) = (
                r
                for r in rows
                if (r["preset"], r["name"], (r["dataset"], r["protocol"], r["shots"])) == (preset, name, column)
            )
            low, high = row["interval"]
            cells.append(f"{100 * row['accuracy_mean']:.1f} ({100 * low:.1f}–{100 * high:.1f})")
        flops = runs.get(f"{preset}|{name}", {}).get("flops")
        lines.append(f"| {preset} | {name} | {f'{flops:.2g}' if flops else '0'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", default="parquet:cifar10")
    parser.add_argument("--folder", type=Path, default=Path("transfer_table"))
    parser.add_argument("--flops", type=float, default=2.5e11, help="training FLOPs of each pretraining")
    parser.add_argument("--kinds", nargs="*", default=list(PRETRAINING))
    parser.add_argument("--table", type=Path, metavar="RESULTS.json", help="print its table and train nothing")
    arguments = parser.parse_args()
    if arguments.table:
        document = json.loads(arguments.table.read_text())
        print(table(document["rows"], document["runs"]), end="")
        return
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began, rows, runs = time.time(), [], {}
    for kind in ["none", *arguments.kinds]:
        for preset in BACKBONES:
            if kind == "none":
                rows += judged(None, preset, "none (random weights)", arguments.cifar10, arguments.folder)
                continue
            place, known = pretrain(preset, kind, arguments.cifar10, arguments.folder, arguments.flops)
            runs[f"{preset}|{kind}"] = known
            rows += judged(place, preset, kind, arguments.cifar10, arguments.folder)
        document = {"rows": rows, "runs": runs, "seconds": round(time.time() - began)}
        (arguments.folder / "results.json").write_text(json.dumps(document, indent=1))
        (arguments.folder / "table.md").write_text(table(rows, runs))
    forward = {preset: cost(preset, num_classes=10, image_size=32, in_channels=3).flops for preset in BACKBONES}
    print(table(rows, runs), forward)


if __name__ == "__main__":
    main()
