"""What masked pretraining is worth, at a scale of minutes: the tables of docs/results/objectives.md.

    python benchmarks/objectives.py digits FOLDER                 # fractals -> digits, three families, three seeds
    python benchmarks/objectives.py cifar FOLDER --data PATH      # CIFAR-10: masked, then labels; or labels alone
    python benchmarks/objectives.py law FOLDER                    # the loss against compute
    python benchmarks/objectives.py table FOLDER                  # what has been done, as Markdown

Everything is a run directory in FOLDER: what is done is not done again, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from isoflop import laws
from isoflop.config import RunConfig, TransferConfig, parse
from isoflop.train import train
from isoflop.train.forecast import train_flops_per_image
from isoflop.transfer import open_backbone, transfer

MODELS = {"vit": "vit_w16d2p8", "poolformer": "poolformer_w16d4p4", "nfnet": "nfnet_w8d2"}
SEEDS = (0, 1, 2)
MASKED = {"name": "masked", "decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2}
FRACTALS = {"source": "fractals?classes=1000&zipf=1.5", "heldout": 256}
BATCH = 128
DIGITS_STEPS = 800
CIFAR_EPOCHS = 6  # of the arm that has labels from the start; the other gets the same FLOPs
CIFAR_IMAGES = 45_000
PRETRAINING_SHARE = 0.5  # of these FLOPs
LAW_MODELS = ("vit_w8d1p8", "vit_w12d2p8", "vit_w24d2p8")
LAW_BUDGETS = (1e10, 3e10, 1e11)


def run_config(model: str, steps: int, seed: int, **more: Any) -> RunConfig:
    """A run of the recipe that all of them share; `more` are further tables."""
    return parse(
        {
            "model": {"name": model},
            "steps": steps,
            "batch_size": BATCH,
            "seed": seed,
            "threads": 1,
            "tensorboard": False,
            "log_every": 50,
            "optim": {"learning_rate": 1e-2, "weight_decay": 0.05, "betas": [0.9, 0.95]},
            "schedule": {"name": "cosine", "warmup": min(50, steps // 5)},
            **more,
        },
        RunConfig,
    )


def record(folder: Path, **row: Any) -> None:
    """Appends to the results what this run came to."""
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def digits(folder: Path, families: list[str], seeds: list[int]) -> None:
    """Masked pretraining on fractals, then ridge regression on frozen features of digits; random weights beside."""
    for seed in seeds:
        for family in families:
            directory = folder / f"digits-{family}-{seed}"
            config = run_config(MODELS[family], DIGITS_STEPS, seed, objective=MASKED, data={**FRACTALS, "seed": seed})
            result = train(config, directory)
            for random_weights in (False, True):
                # Ten labelled images of each class, and all 1,437: the linear probe.
                judged = transfer(
                    open_backbone(directory, random_weights=random_weights),
                    TransferConfig(protocols=("ridge",), shots=(10, 0), seeds=SEEDS),
                )
                few, probe = (row["accuracy_mean"] for row in judged)
                weights = "random" if random_weights else "masked"
                record(folder, table="digits", family=family, seed=seed, weights=weights, ten_shot=few, probe=probe,
                       loss=result.heldout_loss, seconds=result.seconds)  # fmt: skip


def cifar(folder: Path, families: list[str], seeds: list[int], data: str, epochs: int) -> None:
    """Labels alone for `epochs`, and masking before labels, at equal training FLOPs (decoder included)."""
    images = {"source": f"parquet:{data}", "heldout": 50_000 - CIFAR_IMAGES, "augment": "crop_flip"}
    for seed in seeds:
        for family in families:
            supervised = run_config(MODELS[family], 1, seed, data=images)
            masked = run_config(MODELS[family], 1, seed, data=images, objective=MASKED)
            cost, masked_cost = (train_flops_per_image(config, 10, 3) for config in (supervised, masked))
            steps = round(epochs * CIFAR_IMAGES / BATCH)
            first = round(steps * PRETRAINING_SHARE * cost / masked_cost)
            rest = round(steps * (1 - PRETRAINING_SHARE))
            flops = steps * BATCH * cost
            scratch = train(
                run_config(MODELS[family], steps, seed, data=images), folder / f"cifar-{family}-{seed}-labels"
            )
            record(folder, table="cifar", family=family, seed=seed, arm="labels", steps=steps, flops=flops,
                   accuracy=scratch.heldout_accuracy, loss=scratch.heldout_loss, seconds=scratch.seconds)  # fmt: skip
            pretrained = folder / f"cifar-{family}-{seed}-masked"
            before = train(run_config(MODELS[family], first, seed, data=images, objective=MASKED), pretrained)
            tuned = train(
                run_config(MODELS[family], rest, seed, data=images, start={"weights": str(pretrained)}),
                folder / f"cifar-{family}-{seed}-tuned",
            )
            flops = first * BATCH * masked_cost + rest * BATCH * cost
            record(folder, table="cifar", family=family, seed=seed, arm="masked, then labels", steps=[first, rest],
                   flops=flops, accuracy=tuned.heldout_accuracy, loss=tuned.heldout_loss,
                   seconds=before.seconds + tuned.seconds)  # fmt: skip


def law(folder: Path) -> None:
    """Masked runs of three sizes at four budgets."""
    for budget in LAW_BUDGETS:
        for model in LAW_MODELS:
            cost = train_flops_per_image(run_config(model, 1, 0, objective=MASKED, data=FRACTALS), 1000, 3)
            steps = round(budget / cost / BATCH)
            if steps < 20:
                continue
            config = run_config(model, steps, 0, objective=MASKED, data={**FRACTALS, "heldout": 1024})
            result = train(config, folder / f"law-{model}-{budget:g}")
            record(folder, table="law", model=model, budget=budget, flops_per_image=cost, steps=steps,
                   loss=result.heldout_loss, seconds=result.seconds)  # fmt: skip


def told(values: list[float], scale: float = 100) -> str:
    spread = f" ± {scale * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{scale * fmean(values):.1f}{spread}"


def table(folder: Path) -> None:
    """The results as Markdown."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    rows = list({json.dumps([row.get(k) for k in ("table", "family", "seed", "weights", "arm", "model", "budget")]): row
                 for row in lines}.values())  # fmt: skip
    print("| family | weights | 10-shot | linear probe | seeds |\n|---|---|---|---|---|")
    for family in MODELS:
        for weights in ("masked", "random"):
            found = [r for r in rows if r["table"] == "digits" and (r["family"], r["weights"]) == (family, weights)]
            if found:
                few, probe = (told([r[key] for r in found]) for key in ("ten_shot", "probe"))
                print(f"| {family} | {weights} | {few} | {probe} | {len(found)} |")
    print("\n| family | arm | FLOPs | accuracy | seeds |\n|---|---|---|---|---|")
    for family in MODELS:
        for arm in ("labels", "masked, then labels"):
            found = [r for r in rows if r["table"] == "cifar" and (r["family"], r["arm"]) == (family, arm)]
            if found:
                accuracy = told([r["accuracy"] for r in found])
                print(f"| {family} | {arm} | {found[0]['flops']:.3g} | {accuracy} | {len(found)} |")
    found = [r for r in rows if r["table"] == "law"]
    if found:
        print("\n| budget | best model | loss |\n|---|---|---|")
        for budget in LAW_BUDGETS:
            best = min((r for r in found if r["budget"] == budget), key=lambda r: r["loss"], default=None)
            if best:
                print(f"| {budget:.0e} | {best['model']} | {best['loss']:.4f} |")
        points = laws.frontier_points(
            [r["flops_per_image"] for r in found], [r["steps"] * BATCH for r in found], [r["loss"] for r in found]
        )
        fit = laws.fit_frontier(points.compute, points.loss, seed=0)
        print(f"\nfrontier: loss = {fit.a:.3g} · (C + {fit.d:.2g})^-{fit.b:.3f} + {fit.c:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("digits", "cifar", "law", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--families", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--data", help="CIFAR-10 as the Hugging Face hub stores it: a folder of Parquet files")
    parser.add_argument("--epochs", type=int, default=CIFAR_EPOCHS, help="of the arm of CIFAR-10 that has labels alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == "digits":
        digits(args.folder, args.families, args.seeds)
    elif args.what == "cifar":
        cifar(args.folder, args.families, args.seeds, args.data, args.epochs)
    elif args.what == "law":
        law(args.folder)
    else:
        table(args.folder)


if __name__ == "__main__":
    main()
