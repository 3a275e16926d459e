"""Architectures compared as a paper needs it: the same compute for each, several seeds, error bars, a figure.

    python examples/compare.py --source parquet:cifar10 --flops 1e11 --seeds 5      # minutes a model on one core

Every model is trained with the same training FLOPs at each of its learning rates; the rate that is best over all seeds
is kept, so that no model owes its place to one lucky run. Printed are means with 95 % intervals (Student's t) and, for
each pair with the best model, the difference with its interval: seeds share data and its order, so that pairs are
compared seed by seed. The figure is written as SVG and PDF, the numbers as CSV.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from isoflop.config import RunConfig, parse
from isoflop.data import open_split
from isoflop.objectives import objective_cost
from isoflop.report import write_figures
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.train import train

SGD = {"name": "sgd", "momentum": 0.9, "agc": 0.01, "weight_decay": 2e-5}
# model: the learning rates to choose from, and its optimizer where it is not AdamW
CONTENDERS: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {
    "vit_w16d2p8": ((5e-3, 1e-2), {}),
    "poolformer_w8d2p4": ((1e-2, 2e-2), {}),
    "nfnet_w8d2": ((0.5, 1.0), SGD),
}


def losses(model: str, rate: float, optim: dict[str, Any], given: argparse.Namespace) -> NDArray[np.float64]:
    """The held-out loss of each seed; training FLOPs are `given.flops`, to a step."""
    tables: dict[str, Any] = {
        "model": {"name": model},
        "batch_size": given.batch_size,
        "steps": 1,
        "data": {"source": given.source, "image_size": 32, "heldout": given.heldout},
        "optim": {"learning_rate": rate, **optim},
        "schedule": {"name": "cosine"},
        "tensorboard": False,
    }
    config = parse(tables, RunConfig)
    source = open_split(config.data, "train")
    cost = objective_cost(
        config.objective, model, num_classes=source.num_classes or 1, image_size=32, in_channels=source.channels
    )
    tables["steps"] = steps = max(1, round(given.flops / (cost.train_flops_per_image * given.batch_size)))
    tables["schedule"]["warmup"] = steps // 10
    found = []
    for seed in range(given.seeds):
        config = parse(tables | {"seed": seed}, RunConfig)
        result = train(config, given.output / f"{model}-{rate:g}-{seed}")
        found.append(result.heldout_loss if result.state == "done" else math.inf)
    return np.array(found)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    spread = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(spread)


def figure(found: dict[str, NDArray[np.float64]], flops: float) -> Figure:
    """A bar for each model with its interval."""
    models = sorted(found, key=lambda model: -found[model].mean())  # the best on top
    means, spreads = zip(*(interval(found[model]) for model in models), strict=True)
    bars = Series(
        "bar",
        x=means,
        y=models,
        lower=[mean - spread for mean, spread in zip(means, spreads, strict=True)],
        upper=[mean + spread for mean, spread in zip(means, spreads, strict=True)],
        color="family0",
    )
    told = [f"{model} {mean:.3f} ± {spread:.3f}" for model, mean, spread in zip(models, means, spreads, strict=True)]
    return Figure(
        key="compared",
        title=f"Held-out loss after {flops:g} training FLOPs",
        caption=f"Mean of {len(found[models[0]])} seeds and its 95 % interval.",
        alt="; ".join(told),
        panels=(Panel(Axis("held-out loss"), Axis("", "category", tuple(models)), (bars,)),),
        columns=1,
        legend=False,
    )


def main(arguments: Sequence[str] | None = None, contenders: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains, prints and draws; returns the losses of each model by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="digits", help="as data.source")
    parser.add_argument("--flops", type=float, default=1e10, help="of training, for each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--heldout", type=int, default=359)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    parser.add_argument("--formats", nargs="+", default=["svg", "pdf", "csv"])
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error("an interval needs two seeds")

    found: dict[str, NDArray[np.float64]] = {}
    for model, (rates, optim) in (contenders or CONTENDERS).items():
        tried = {rate: losses(model, rate, optim, given) for rate in rates}
        best = min(tried, key=lambda rate: tried[rate].mean())
        found[model] = tried[best]
        mean, spread = interval(found[model])
        print(f"{model}: {mean:.3f} ± {spread:.3f} at learning rate {best:g}")
    leader = min(found, key=lambda model: found[model].mean())
    for model in found.keys() - {leader}:
        mean, spread = interval(found[model] - found[leader])
        verdict = "worse" if mean > spread else "not to be told apart with these seeds"
        print(f"{model} − {leader}: {mean:+.3f} ± {spread:.3f}: {verdict}")
    written = write_figures([figure(found, given.flops)], given.output / "figures", given.formats)
    print("written:", *written)
    return found


if __name__ == "__main__":
    main()
